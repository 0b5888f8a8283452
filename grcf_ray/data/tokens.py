"""Tokenize texts, each after its context, and find the word of each subword."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from grcf_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_WORD = -1
"""The word of special tokens and of the context."""


def tokenize(
    text_N: Sequence[str],
    context_N: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    by_word: bool,
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Return the subword ids of every text; by_word: also the number of each subword's word, from 0, or `NO_WORD`.

    context_N: the sentences before each text, empty without any; if both are too long together, the context loses its
    beginning. A single space separates two words, so two spaces enclose an empty word. The ids do not depend on
    by_word. ConfigError if the tokenizer has no character offsets.
    """
    if by_word and not tokenizer.is_fast:
        raise ConfigError(
            "the data has a row of audio and vision for each word, but the backbone's tokenizer cannot tell the word "
            "of a subword: choose a backbone with a fast tokenizer (--backbone)"
        )
    options = {"max_length": max_tokens, "return_attention_mask": False, "return_offsets_mapping": by_word}
    encoded = tokenizer(list(text_N), truncation=True, **options)
    # Without special tokens (GPT-2), an empty text has no subword, which no encoder accepts.
    ids: list[list[int]] = [list(row) or [_stand_in(tokenizer)] for row in encoded["input_ids"]]
    words: list[list[int]] = []
    if by_word:
        words = [
            _words(text, encoded["offset_mapping"][row], encoded.sequence_ids(row), 0) or [NO_WORD]
            for row, text in enumerate(text_N)
        ]
    added = tokenizer.num_special_tokens_to_add(pair=True) - tokenizer.num_special_tokens_to_add(pair=False)
    rows = [row for row, said in enumerate(context_N) if said and len(ids[row]) + added < max_tokens]
    if rows:
        with _truncating_left(tokenizer):
            both = tokenizer(
                [context_N[row] for row in rows], [text_N[row] for row in rows], truncation="only_first", **options
            )
        for place, row in enumerate(rows):
            ids[row] = both["input_ids"][place]
            if by_word:
                words[row] = _words(text_N[row], both["offset_mapping"][place], both.sequence_ids(place), 1)
    return ids, words if by_word else None


def count_cut(text_N: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> int:
    """Count the texts with more subwords than a model reads, special tokens included; the rest of them is cut off."""
    # An ASCII text has at most as many subwords as characters, plus a mark at its start; other characters may be split.
    spare = max_tokens - tokenizer.num_special_tokens_to_add() - 1
    long = [text for text in text_N if len(text) > spare or not text.isascii()]
    if not long:
        return 0
    return sum(len(ids) > max_tokens for ids in tokenizer(long, truncation=False)["input_ids"])


def _stand_in(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that replaces an empty text."""
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return int(next((token for token in ends if token is not None), 0))


def _words(text: str, span_T: Sequence[tuple[int, int]], sequence_T: Sequence[int | None], sequence: int) -> list[int]:
    """Return [T] the word of each subword, or `NO_WORD`.

    span_T: first character of each subword and the one after its last, in its own sequence. sequence_T: its
    sequence, None for special tokens. sequence: the sequence of the text.

    The tokenizer's own word numbers need the words one by one. Byte-level BPE would then take each word, without the
    space before it, for the beginning of a text.
    """
    words = []
    for (start, stop), part in zip(span_T, sequence_T, strict=True):
        # Some tokenizers include the space before a word in its span. A span of spaces alone, or of no character,
        # is the mark of the next word.
        first = stop - len(text[start:stop].lstrip(" "))
        words.append(text.count(" ", 0, first) if part == sequence else NO_WORD)
    return words


@contextlib.contextmanager
def _truncating_left(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Truncate at the left, so that the oldest context is dropped first."""
    side, tokenizer.truncation_side = tokenizer.truncation_side, "left"
    try:
        yield
    finally:
        tokenizer.truncation_side = side
