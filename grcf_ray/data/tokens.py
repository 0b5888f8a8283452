"""Subword ids of texts, each after what was said before it, and the word that each subword is of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from grcf_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_WORD = -1
"""The word of special tokens, and of what was said before."""


def tokenize(
    text_N: Sequence[str],
    before_N: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    by_word: bool,
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Subword ids of every text, and by_word the number of each subword's word, from 0, or `NO_WORD`.

    before_N: what was said before each text, empty for nothing; where the two are too long together, its beginning
    is left out. A single space parts two words, so that an empty word may lie between two spaces. The ids hang on
    by_word in nothing. ConfigError where the tokenizer cannot say which characters a subword stands for.
    """
    if by_word and not tokenizer.is_fast:
        raise ConfigError(
            "the data's rows follow words, and the backbone's tokenizer cannot say which subword is whose"
        )
    options = {"max_length": max_tokens, "return_attention_mask": False, "return_offsets_mapping": by_word}
    encoded = tokenizer(list(text_N), truncation=True, **options)
    # A tokenizer without special tokens (GPT-2's) makes nothing of an empty text, which no encoder takes.
    ids: list[list[int]] = [list(row) or [_stand_in(tokenizer)] for row in encoded["input_ids"]]
    words: list[list[int]] = []
    if by_word:
        words = [
            _words(text, encoded["offset_mapping"][row], encoded.sequence_ids(row), 0) or [NO_WORD]
            for row, text in enumerate(text_N)
        ]
    added = tokenizer.num_special_tokens_to_add(pair=True) - tokenizer.num_special_tokens_to_add(pair=False)
    rows = [row for row, said in enumerate(before_N) if said and len(ids[row]) + added < max_tokens]
    if rows:
        with _truncating_left(tokenizer):
            both = tokenizer(
                [before_N[row] for row in rows], [text_N[row] for row in rows], truncation="only_first", **options
            )
        for place, row in enumerate(rows):
            ids[row] = both["input_ids"][place]
            if by_word:
                words[row] = _words(text_N[row], both["offset_mapping"][place], both.sequence_ids(place), 1)
    return ids, words if by_word else None


def count_cut(text_N: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> int:
    """How many of the texts have more subwords than a model reads, special tokens included; their rest is left out."""
    # Of ASCII no tokenizer makes more subwords than it has letters, beside a mark at its beginning; other letters may
    # be taken apart first.
    spare = max_tokens - tokenizer.num_special_tokens_to_add() - 1
    long = [text for text in text_N if len(text) > spare or not text.isascii()]
    if not long:
        return 0
    return sum(len(ids) > max_tokens for ids in tokenizer(long, truncation=False)["input_ids"])


def _stand_in(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token of a text that has none."""
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return int(next((token for token in ends if token is not None), 0))


def _words(text: str, span_T: Sequence[tuple[int, int]], sequence_T: Sequence[int | None], sequence: int) -> list[int]:
    """[T] the text's word that each subword is of, or `NO_WORD`.

    span_T: first character of each subword and the one after its last, in its own sequence. sequence_T: its
    sequence, None for special tokens. sequence: which of them the text is.

    The tokenizer's own count of words would not do: it needs the words one by one, and byte-level BPE reads a word
    without the space before it as the beginning of a text.
    """
    words = []
    for (start, stop), part in zip(span_T, sequence_T, strict=True):
        # Tokenizers differ in whether a span begins with the space before the word. One of spaces alone, or of no
        # character, is the mark of the word after it.
        first = stop - len(text[start:stop].lstrip(" "))
        words.append(text.count(" ", 0, first) if part == sequence else NO_WORD)
    return words


@contextlib.contextmanager
def _truncating_left(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """What was said longest ago is left out first."""
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    try:
        yield
    finally:
        tokenizer.truncation_side = side
