"""Subword ids and the words that they are of, with a tokenizer of each kind."""

from __future__ import annotations

import dataclasses
import itertools
import string
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from grcf_ray.config import FeatureConfig
from grcf_ray.data.features import build_split
from grcf_ray.data.tokens import count_cut, tokenize
from grcf_ray.errors import ConfigError
from grcf_ray.model.pretrained import load_tokenizer

KNOWN = ("good", "quick", "ly", "film", "bad")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LETTERS = (*string.ascii_letters, *string.digits, *string.punctuation, "⁄", "½", "ï", "ﬁ", "好")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of tokenizer: how it is made, and what it reads of a word."""

    make: Callable[[], Tokenizer]
    tokens: tuple[str, ...]
    """Of `good quickly film`, special tokens aside."""
    reads: Callable[[str], str] = str


def in_template(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def byte_level(post_processor: Any) -> Tokenizer:
    """Of RoBERTa and GPT-2: a space belongs to the word after it, and to no other."""
    merges: dict[tuple[str, str], None] = {}
    for word in KNOWN:
        merges |= dict.fromkeys((word[:end], word[end]) for end in range(1, len(word)))
    merges |= dict.fromkeys(("Ġ", word) for word in KNOWN)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys([*SPECIAL, *alphabet, *("".join(pair) for pair in merges)])
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = post_processor
    return tokenizer


def roberta(*, trim_offsets: bool) -> Tokenizer:
    ends = [(token, SPECIAL.index(token)) for token in ("[SEP]", "[CLS]")]
    return byte_level(processors.RobertaProcessing(*ends, trim_offsets=trim_offsets, add_prefix_space=False))


def metaspace() -> Tokenizer:
    """Of ALBERT and DeBERTa-v3: SentencePiece's unigrams, every word with a mark before it."""
    pieces = [(token, 0.0) for token in SPECIAL] + [("▁", -6.0)]
    pieces += [(f"▁{word}", -3.0) for word in KNOWN] + [("ly", -3.0)] + [(letter, -9.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("[UNK]")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return in_template(tokenizer)


def word_piece() -> Tokenizer:
    """Of BERT, which takes accents off."""
    pieces = dict.fromkeys([*SPECIAL, *KNOWN, "##ly", *LETTERS, *(f"##{letter}" for letter in LETTERS)])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return in_template(tokenizer)


def plain(word: str) -> str:
    """Lower-cased and without accents."""
    parted = unicodedata.normalize("NFD", word.lower())
    return "".join(letter for letter in parted if unicodedata.category(letter) != "Mn")


BYTES = ("good", "Ġquick", "ly", "Ġfilm")
KINDS = {
    "byte-level, RoBERTa": Kind(lambda: roberta(trim_offsets=True), BYTES),
    "byte-level, spaces in offsets": Kind(lambda: roberta(trim_offsets=False), BYTES),
    "byte-level, GPT-2": Kind(lambda: byte_level(processors.ByteLevel(trim_offsets=True)), BYTES),
    "byte-level, in a template": Kind(lambda: in_template(byte_level(None)), BYTES),
    "metaspace": Kind(metaspace, ("▁good", "▁quick", "ly", "▁film"), lambda word: unicodedata.normalize("NFKC", word)),
    "word piece": Kind(word_piece, ("good", "quick", "##ly", "film"), plain),
}
TEXTS = {
    "several subwords": "good quickly film",
    "one word": "quickly",
    "none": "",
    "space": " ",
    "empty words": "  good  quickly film ",
    "punctuation": "good, bad-film! it's (bad).",
    "normalised": "ﬁlm ½ naïve nai\u0308ve good",
    "several bytes": "好 film 好好 bad",
    "other white space": "good\u00a0film quickly\u3000bad film",
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=kind.make(), pad_token="[PAD]", unk_token="[UNK]")


def subwords(
    tokenizer: PreTrainedTokenizerFast, text: str, *, context: list[str] | None = None, max_tokens: int = 128
) -> tuple[list[int], list[int]]:
    """The ids of one text, the same with and without words, and the word of each, -1 for none.

    A word's row of audio is its number, counted from 1, so that rows of subwords tell whose they are.
    """
    rows = [[float(place + 1)] for place in range(len(text.split(" ")))]
    table = pa.table(
        {
            "text": [text],
            "context": pa.array([context], pa.list_(pa.string())),
            "audio": pa.array([rows], pa.list_(pa.list_(pa.float32()))),
        }
    )
    by_word, as_text = (
        build_split(
            table,
            tokenizer,
            FeatureConfig(max_tokens=max_tokens, special_rows="zero"),
            center=0,
            lowercase=False,
            standardisers={},
            word_aligned=word_aligned,
        )
        for word_aligned in (True, False)
    )
    assert by_word.tokens.values.tolist() == as_text.tokens.values.tolist()
    assert by_word.audio is not None
    np.testing.assert_array_equal(by_word.audio.offsets, by_word.tokens.offsets)
    return by_word.tokens.values.tolist(), (by_word.audio.values[:, 0].astype(int) - 1).tolist()


def test_example(kind: Kind, tokenizer: PreTrainedTokenizerFast) -> None:
    ids, words = subwords(tokenizer, "good quickly film")
    result = list(zip(tokenizer.convert_ids_to_tokens(ids), words, strict=True))
    assert [pair for pair in result if pair[0] not in SPECIAL] == list(zip(kind.tokens, (0, 1, 1, 2), strict=True))
    assert all(word == -1 for token, word in result if token in SPECIAL)


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
def test_subwords_of_a_word_spell_it(kind: Kind, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids, words = subwords(tokenizer, text)
    # No encoder takes a text of no subword at all, as GPT-2's tokenizer makes of an empty one.
    assert ids == (tokenizer(text)["input_ids"] or [tokenizer.unk_token_id])
    owners = [word for word in words if word >= 0]
    assert owners == sorted(owners)
    for place, word in enumerate(text.split(" ")):
        spelled = tokenizer.decode([token for token, owner in zip(ids, words, strict=True) if owner == place])
        assert "".join(spelled.split()) == "".join(kind.reads(word).split()), word


def test_a_word_may_be_cut_off_in_its_middle(tokenizer: PreTrainedTokenizerFast) -> None:
    whole, _ = subwords(tokenizer, "good quickly film bad")
    added = tokenizer.num_special_tokens_to_add()
    ids, words = subwords(tokenizer, "good quickly film bad", max_tokens=2 + added)
    assert len(ids) == 2 + added
    assert [word for word in words if word >= 0] == [0, 1]
    assert [token for token, word in zip(ids, words, strict=True) if word >= 0] == whole[added // 2 :][:2]


@pytest.mark.parametrize("max_tokens", [128, 12])
def test_what_was_said_before_is_of_no_word(tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
    """All of it, and cut from the left."""
    context = ["bad film", "good bad", "film good", "quickly"]
    ids, words = subwords(tokenizer, "good  quickly film", context=context, max_tokens=max_tokens)
    alone, owners = subwords(tokenizer, "good  quickly film")
    said = [(token, word) for token, word in zip(ids, words, strict=True) if word >= 0]
    assert said == [(token, word) for token, word in zip(alone, owners, strict=True) if word >= 0]
    assert len(ids) > len(alone) + 2
    assert len(ids) == 12 or max_tokens > 12
    first = words.index(0)
    assert words[:first] == [-1] * first
    assert len(list(itertools.takewhile(lambda word: word == -1, reversed(words)))) == (
        1 if tokenizer.num_special_tokens_to_add() else 0
    )


def test_a_tokenizer_without_offsets_is_refused() -> None:
    slow: Any = SimpleNamespace(is_fast=False)
    with pytest.raises(ConfigError, match="--backbone"):
        tokenize(["good"], [], slow, max_tokens=8, by_word=True)


def test_texts_that_are_cut_are_counted(tiny_backbone: Path) -> None:
    """From the first subword beyond what is read, the special ones included; bytes alone say nothing."""
    tokenizer = load_tokenizer(str(tiny_backbone))
    texts = ["good " * 6, "good " * 7, "quickly " * 3, "quickly " * 4, "", "x" * 200, "é" * 200]
    assert count_cut(texts, tokenizer, max_tokens=8) == 2
    assert count_cut(texts, tokenizer, max_tokens=512) == 0
    assert count_cut([], tokenizer, max_tokens=8) == 0
