from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from data.small_features import FRAMES, built, every_array, store_of

from grcf_ray.config import FeatureConfig
from grcf_ray.data import features as features_module
from grcf_ray.data.batches import collate
from grcf_ray.data.features import Features, Ragged, Standardiser, build_split
from grcf_ray.data.schema import TableInfo
from grcf_ray.data.store import DatasetStore, write_store
from grcf_ray.model.pooling import AttentionPooling
from grcf_ray.model.pretrained import load_tokenizer


@pytest.mark.parametrize("multiple", [1, 2, 3])
@pytest.mark.parametrize("width", [None, 1, 3])
@pytest.mark.parametrize("chosen", [[0], [2], [3, 0, 3, 1], [2, 2], []])
def test_padding_matches_a_loop(width: int | None, chosen: list[int], multiple: int) -> None:
    """Sequences of 3, 1, 0 and 4 values; repeats, an empty one, and no sequence at all."""
    rng = np.random.default_rng(0)
    lengths = [3, 1, 0, 4]
    sequences = [rng.normal(size=(length,) if width is None else (length, width)) for length in lengths]
    ragged = Ragged(np.concatenate(sequences), np.concatenate([[0], np.cumsum(lengths)]))
    padded, mask = ragged.padded(np.array(chosen, dtype=np.int64), fill=-5, multiple=multiple)
    longest = next(length for length in range(multiple, 9, multiple) if length >= max(lengths[i] for i in [2, *chosen]))
    assert ragged.lengths.tolist() == lengths
    assert padded.shape == (len(chosen), longest, *sequences[0].shape[1:])
    for row, index in enumerate(chosen):
        for place in range(longest):
            real = place < lengths[index]
            assert mask[row, place] == real
            expected = sequences[index][place] if real else np.full(padded.shape[2:], -5)
            np.testing.assert_array_equal(padded[row, place], expected)


@pytest.mark.parametrize("block", [3, 65_536])
def test_standardiser_by_a_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column that never changes, be it large, is centred and no more."""
    rng = np.random.default_rng(1)
    monkeypatch.setattr("grcf_ray.data.features.BLOCK", block)
    rows = np.stack([rng.normal(3, 2, 500), np.full(500, 1e6), np.zeros(500), rng.normal(-1, 1e-3, 500)], axis=1)
    rows = rows.astype(np.float32)
    standardiser = Standardiser.fit(rows)
    out = standardiser(rows)
    for column in (0, 3):
        values = rows[:, column].astype(np.float64)
        mean = sum(values) / len(values)
        deviation = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        np.testing.assert_allclose(out[:, column], (values - mean) / deviation, rtol=1e-3, atol=1e-3)
    assert standardiser.deviation_A[[1, 2]].tolist() == [1, 1]
    np.testing.assert_array_equal(out[:, [1, 2]], 0)
    assert out.dtype == np.float32


def test_standardiser_without_rows_changes_nothing() -> None:
    rows = np.array([[2, 3]], dtype=np.float32)
    np.testing.assert_array_equal(Standardiser.fit(rows[:0])(rows), rows)


def test_training_rows_alone_set_the_statistics(tmp_path: Path, tiny_backbone: Path) -> None:
    """Train holds 1, 3, 5 and a constant 7. Valid is measured by them; the outlier in test changes nothing."""
    features = built(store_of(tmp_path / "own"), tiny_backbone)
    deviation = (8 / 3) ** 0.5
    assert features.train.audio is not None and features.valid.audio is not None
    expected = [[-2 / deviation, 0], [0, 0], [2 / deviation, 0]]
    np.testing.assert_allclose(features.train.audio.values, expected, rtol=1e-6)
    np.testing.assert_allclose(features.valid.audio.values, [[2 / deviation, 0]], rtol=1e-6)
    assert (features.audio_dim, features.vision_dim) == (2, None)


def test_standardisation_can_be_left_out(tmp_path: Path, tiny_backbone: Path) -> None:
    features = built(store_of(tmp_path / "own"), tiny_backbone, standardise=False)
    assert features.train.audio is not None
    assert features.train.audio.values.tolist() == [[1, 7], [3, 7], [5, 7]]
    assert features.standardisers == {}


def test_sample_without_audio_has_no_rows(tmp_path: Path, tiny_backbone: Path) -> None:
    features = built(store_of(tmp_path / "own"), tiny_backbone)
    assert features.train.audio is not None
    assert features.train.audio.lengths.tolist() == [2, 0, 1, 0]
    padded, mask = features.train.audio.padded(np.array([1, 3]))
    assert padded.tolist() == [[[0, 0]], [[0, 0]]]
    assert not mask.any()


def test_split_without_any_audio_has_samples_without_rows(tmp_path: Path, tiny_backbone: Path) -> None:
    """The model has an audio branch, by the training split: the others are missing samples to it."""
    audio = pa.array([[[1, 7]], None, None, None, [[5, 7]], None], FRAMES)
    features = built(store_of(tmp_path / "own", audio=audio), tiny_backbone)
    assert features.audio_dim == 2
    assert features.valid.audio is not None
    assert features.valid.audio.values.shape == (0, 2)
    assert features.valid.audio.lengths.tolist() == [0]


def test_modality_that_no_training_utterance_has_is_no_modality(tmp_path: Path, tiny_backbone: Path) -> None:
    audio = pa.array([None, [[5, 7]], None, [[9, 9]], None, None], FRAMES)
    features = built(store_of(tmp_path / "own", audio=audio), tiny_backbone)
    assert features.audio_dim is None


def test_labels_are_offsets_from_the_centre_on_steps_of_1e_4(tmp_path: Path, tiny_backbone: Path) -> None:
    store = store_of(tmp_path / "own", label=[1.8, 3.2, 3.0, 1.0, 5.0, 1.00004], label_range=(1, 5))
    features = built(store, tiny_backbone)
    assert features.train.label_N.tolist() == [-1.2, 0.0, 2.0, -2.0]
    assert features.valid.label_N.tolist() == [0.2]
    assert (features.center, features.half_range) == (3.0, 2.0)


def test_tokens_are_the_tokenizers_cut_to_the_limit(tmp_path: Path, tiny_backbone: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_backbone))
    features = built(store_of(tmp_path / "own"), tiny_backbone, max_tokens=5)
    tokens = features.train.tokens
    rows = [tokens.values[tokens.offsets[i] : tokens.offsets[i + 1]].tolist() for i in range(4)]
    assert [tokenizer.convert_ids_to_tokens(row) for row in rows] == [
        ["[CLS]", "good", "film", "[SEP]"],
        ["[CLS]", "the", "film", "was", "[SEP]"],
        ["[CLS]", "awful", "[SEP]"],
        ["[CLS]", "great", "music", "[SEP]"],
    ]
    assert tokens.values.dtype == np.int32
    assert features.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("text", "lowercase", "known"),
    [
        ("GOOD FILM", "auto", True),
        ("GOOD FILM", "yes", True),
        ("GOOD FILM", "no", False),
        ("Good film, not LOUD", "auto", False),
        ("Good film, not LOUD", "yes", True),
    ],
)
def test_text_is_lower_cased_by_the_rule(
    tmp_path: Path, tiny_backbone: Path, text: str, lowercase: Any, known: bool
) -> None:
    """The tiny tokenizer keeps case and knows `good`, not `GOOD`. Auto looks at the table's training split."""
    tokenizer = load_tokenizer(str(tiny_backbone))
    features = built(store_of(tmp_path / "own", text=[text] * 6), tiny_backbone, lowercase=lowercase)
    assert (int(features.train.tokens.values[1]) == tokenizer.convert_tokens_to_ids("good")) is known


def test_arrays_are_plain_read_only_views_of_a_map(tiny_features: Features) -> None:
    for name, array in every_array(tiny_features).items():
        assert type(array) is np.ndarray, name
        assert not array.flags.writeable, name
        base = array.base
        while base is not None and not isinstance(base, np.memmap):
            base = getattr(base, "base", None)
        assert isinstance(base, np.memmap), name
    with pytest.raises(ValueError, match="read-only"):
        tiny_features.train.label_N[0] = 0


def test_test_split_is_never_opened(tiny_store: DatasetStore, tiny_backbone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "without-test"
    shutil.copytree(tiny_store.folder, folder)
    (folder / "test.parquet").unlink()
    features = built(DatasetStore.open(folder), tiny_backbone)
    assert (len(features.train), len(features.valid)) == (48, 16)


def test_splits_of_a_table_are_built_as_the_cached_ones(tiny_store: DatasetStore, tiny_backbone: Path) -> None:
    """The test split, which is built once a winner is fixed, takes this way."""
    features = built(tiny_store, tiny_backbone)
    split = build_split(
        tiny_store.read("valid"),
        load_tokenizer(str(tiny_backbone)),
        FeatureConfig(),
        center=features.center,
        lowercase=False,
        standardisers=features.standardisers,
    )
    arrays = features_module._arrays(split)
    assert arrays.keys() == features_module._arrays(features.valid).keys()
    for name, array in features_module._arrays(features.valid).items():
        np.testing.assert_array_equal(arrays[name], array)


def test_modalities_can_be_left_out(tiny_features: Features) -> None:
    split = tiny_features.train
    assert (split.only("text").audio, split.only("text").vision) == (None, None)
    assert (split.only("text+audio").audio, split.only("text+audio").vision) == (split.audio, None)
    assert (split.only(["vision"]).audio, split.only(["vision"]).vision) == (None, split.vision)
    bytes_of_audio = sum(array.nbytes for array in dataclasses.astuple(split.audio))
    assert split.nbytes - split.only("text+vision").nbytes == bytes_of_audio > 0
    assert split.only("audio+vision") == dataclasses.replace(split, tokens=None)


def test_context_stands_before_the_text(tmp_path: Path, tiny_backbone: Path) -> None:
    """Joined; of what is too long the oldest is left out; a text without room for it has none."""
    context = [["so bad", "the plot"], None, [], ["x"], ["good " * 30 + "awful"], ["good"]]
    text = ["good film", "bad plot", "fine", "fine", "awful music", "great " * 20]
    store = store_of(tmp_path, context=pa.array(context, pa.list_(pa.string())), text=text)
    features = built(store, tiny_backbone, max_tokens=12)
    tokenizer = load_tokenizer(str(tiny_backbone))

    def words(split: str, row: int) -> list[str]:
        tokens = getattr(features, split).tokens
        start, stop = tokens.offsets[row : row + 2]
        result: list[str] = tokenizer.convert_ids_to_tokens(tokens.values[start:stop].tolist())
        return result

    unknown = ["[UNK]" if word == "so" else word for word in ["so", "bad", "the", "plot"]]
    assert words("train", 0) == ["[CLS]", *unknown, "[SEP]", "good", "film", "[SEP]"]
    assert words("train", 1) == ["[CLS]", "fine", "[SEP]"]
    assert words("train", 2) == ["[CLS]", *["good"] * 6, "awful", "[SEP]", "awful", "music", "[SEP]"]
    assert words("train", 3) == ["[CLS]", *["great"] * 10, "[SEP]"]
    assert words("valid", 0) == ["[CLS]", "bad", "plot", "[SEP]"]
    assert tokenizer.truncation_side == "right"
    without = built(store, tiny_backbone, max_tokens=12, context=False)
    assert without.train.tokens.lengths.tolist() == [4, 3, 4, 12]


def aligned(folder: Path, **columns: Any) -> DatasetStore:
    """A store whose audio has a row for each word of the text."""
    loose = store_of(folder / "loose", **columns)
    table = pa.concat_tables([loose.read(split) for split in ("train", "valid", "test")])
    info = TableInfo.describe(table, name="own", label_range=(-3, 3), word_aligned=True)
    assert info.fingerprint != loose.info.fingerprint
    return write_store(folder / "aligned", table, info)


WORDS = ["good quickly film", "bad", "fine", "fine", "awful plot", "great music"]
ROWS = pa.array([[[1, 7], [3, 7], [5, 7]], [[2, 1]], None, [[9, 9]], [[7, 7], [8, 7]], None], FRAMES)


def test_rows_of_words_follow_the_text_and_not_what_was_said_before(tmp_path: Path, tiny_backbone: Path) -> None:
    context = [["bad plot", "fine"], [], ["good"], None, None, None]
    store = aligned(tmp_path, text=WORDS, audio=ROWS, context=pa.array(context, pa.list_(pa.string())))
    rows = built(store, tiny_backbone, standardise=False).train.audio
    zero = built(store, tiny_backbone, standardise=False, special_rows="zero").train.audio
    assert rows is not None and zero is not None
    # [CLS] bad plot fine [SEP] good quick ##ly film [SEP]
    assert rows.values[:4].tolist() == [[1, 7], [3, 7], [3, 7], [5, 7]]
    assert rows.lengths.tolist() == [4, 0, 2, 0]
    assert zero.values[:10].tolist() == [[0, 0]] * 5 + [[1, 7], [3, 7], [3, 7], [5, 7], [0, 0]]
    assert zero.lengths.tolist() == [10, 0, 4, 0]


def test_attention_pools_the_words_alone_or_zeros_with_them(tmp_path: Path, tiny_backbone: Path) -> None:
    """[CLS] good quick ##ly [SEP], all weights of eq. 1 equal."""
    audio = [[[1, 2], [2, 3]], *([None] * 5)]
    store = aligned(tmp_path, text=["good quickly", *WORDS[1:]], audio=pa.array(audio, FRAMES))
    pooling = AttentionPooling(2).requires_grad_(False)
    pooling.projection.weight.zero_()
    pooled, keys = {}, set()
    for special_rows in ("none", "zero"):
        features = built(store, tiny_backbone, standardise=False, special_rows=special_rows)
        batch = collate(features, features.train, np.array([0]))
        assert batch.audio_BLA is not None and batch.audio_mask_BL is not None
        pooled[special_rows] = pooling(batch.audio_BLA, batch.audio_mask_BL)[0].tolist()
        keys.add(features.key)
    assert pooled == {"none": pytest.approx([5 / 3, 8 / 3]), "zero": pytest.approx([1.0, 1.6])}
    assert len(keys) == 2


def test_rows_of_words_follow_the_subwords(tmp_path: Path, tiny_backbone: Path) -> None:
    """A row for each subword of its word, none of a word that is cut off; special tokens have none, or zeros."""
    store = aligned(tmp_path, text=WORDS, audio=ROWS)
    features = built(store, tiny_backbone, standardise=False, special_rows="zero")
    assert features.word_aligned
    audio_rows = features.train.audio
    assert audio_rows is not None
    # [CLS] good quick ##ly film [SEP]
    assert audio_rows.values[:6].tolist() == [[0, 0], [1, 7], [3, 7], [3, 7], [5, 7], [0, 0]]
    assert audio_rows.lengths.tolist() == [6, 0, 4, 0]
    assert features.train.tokens.lengths.tolist() == [6, 3, 4, 4]
    assert built(store, tiny_backbone, standardise=False).train.audio.lengths.tolist() == [4, 0, 2, 0]  # type: ignore[union-attr]
    cut = built(store, tiny_backbone, standardise=False, max_tokens=4).train
    assert cut.audio is not None
    assert cut.audio.values[:2].tolist() == [[1, 7], [3, 7]]
    assert cut.audio.lengths[0] == 2
    standard = built(store, tiny_backbone, special_rows="zero").train.audio
    assert standard is not None
    # The statistics are those of the words' rows, and special tokens are zero after them.
    rows = np.array([[1, 7], [3, 7], [5, 7], [7, 7], [8, 7]], np.float64)
    expected = (rows[0] - rows.mean(0)) / np.where(rows.std(0) > 0, rows.std(0), 1)
    np.testing.assert_allclose(standard.values[:2], [[0, 0], expected], rtol=1e-5)
