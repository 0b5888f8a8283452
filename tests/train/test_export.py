from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from grcf_ray.data.features import Features
from grcf_ray.data.schema import conform
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import DamagedError, DataError
from grcf_ray.files import file_sha256
from grcf_ray.model.build import build_model
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.storage import storage_path
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.export import SavedModel, load_model, save_model
from grcf_ray.train.manifest import extend_manifest, is_complete, write_manifest
from grcf_ray.train.stage import StageLoop, predict

if TYPE_CHECKING:
    from tests.train.conftest import NewLoop

LOAD = """
import sys
from pathlib import Path

import numpy as np
import torch

from grcf_ray import load_model
from grcf_ray.data.store import DatasetStore

torch.set_num_threads(1)
np.save(sys.argv[3], load_model(sys.argv[1]).score(DatasetStore.open(Path(sys.argv[2])).read("valid")))
assert not {"ray", "optuna", "tensorboard"} & sys.modules.keys()
"""


def saved(folder: Path, loop: StageLoop, **changes: Any) -> Path:
    known: dict[str, Any] = {"label_range": (-3.0, 3.0), "protocol": "mosi", "lowercase": False}
    tokenizer = load_tokenizer(loop.config.model.backbone)
    save_model(folder, loop.model, tokenizer, loop.features, loop.config, **(known | changes))
    return folder


def scores_in_training(loop: StageLoop) -> Any:
    return predict(loop.model, loop.features, loop.features.valid, device=loop.device, token_budget=64)


@pytest.fixture(scope="module")
def trained(new_loop: NewLoop) -> StageLoop:
    loop = new_loop(2)
    loop.run_epoch()
    return loop


@pytest.fixture(scope="module")
def folder(trained: StageLoop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("saved") / "best", trained)


@pytest.fixture
def best(folder: Path, tmp_path: Path) -> Path:
    """A copy of the saved model, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "best"))


def configure(best: Path, **changes: Any) -> None:
    """Change the saved config.json, under a manifest that agrees."""
    path = best / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    write_manifest(best)


def test_new_process_gives_the_same_scores_bit_for_bit(
    best: Path, trained: StageLoop, tiny_store: DatasetStore, tmp_path: Path
) -> None:
    """From the folder alone, moved to another place; the process knows neither features nor backbone, nor Ray."""
    words = [sys.executable, "-c", LOAD, str(best), str(tiny_store.folder), str(tmp_path / "scores.npy")]
    subprocess.run(words, check=True, timeout=120)
    scores = np.load(tmp_path / "scores.npy")
    np.testing.assert_array_equal(scores, scores_in_training(trained))
    assert np.ptp(scores) > 0.1


@pytest.mark.parametrize("stage", [1, 2])
def test_model_without_text_is_trained_and_scores_without_it(
    new_loop: NewLoop, tiny_store: DatasetStore, tmp_path: Path, stage: Literal[1, 2]
) -> None:
    loop = new_loop(stage, model__modalities="audio+vision", model__textless_width=16)
    losses = [metrics["loss/total"] for metrics in loop]
    assert losses[-1] < losses[0]
    save_model(
        tmp_path, loop.model, None, loop.features, loop.config, label_range=(-3, 3), protocol="mosi", lowercase=False
    )
    assert not (tmp_path / "tokenizer").exists()
    loaded, rows = load_model(tmp_path), tiny_store.read("valid")
    assert loaded.inputs == ("vision", "audio")
    scores = loaded.score(rows.drop_columns(["text"]))
    np.testing.assert_array_equal(scores, scores_in_training(loop))
    with pytest.raises(DataError, match="no audio column"):
        loaded.score(rows.drop_columns(["audio"]))
    with pytest.raises(DataError, match="with the columns vision, audio"):
        loaded.score(["good film"])


def test_model_from_before_a_setting_does_what_was_done_then(best: Path) -> None:
    assert load_model(best).config.features.special_rows == "none"
    settings = json.loads((best / "config.json").read_text())["settings"]
    configure(best, settings={path: value for path, value in settings.items() if path != "features.special_rows"})
    assert load_model(best).config.features.special_rows == "zero"


@pytest.mark.parametrize("frozen", [1, "all"])
def test_model_with_frozen_layers_is_saved_whole(
    new_loop: NewLoop, tiny_store: DatasetStore, tmp_path: Path, frozen: int | Literal["all"]
) -> None:
    changes = {"model__frozen_layers": frozen, "model__text_vector": "mean"}
    features = prepare_features(tiny_store, new_loop(**changes).config)
    loop = new_loop(features=features, **changes)
    loop.run_epoch()
    scores = load_model(saved(tmp_path, loop)).score(tiny_store.read("valid"))
    np.testing.assert_allclose(scores, scores_in_training(loop), atol=1e-5)


def test_double_precision_survives(new_loop: NewLoop, tiny_store: DatasetStore, tmp_path: Path) -> None:
    loop = new_loop(train__precision="float64")
    model = load_model(saved(tmp_path, loop))
    np.testing.assert_array_equal(model.score(tiny_store.read("valid")), scores_in_training(loop))
    assert {p.dtype for p in model.model.parameters()} == {torch.float64}


def test_a_model_describes_what_it_scores(folder: Path, trained: StageLoop, tiny_store: DatasetStore) -> None:
    """One pass gives both: the scores of `score` bit for bit, and the states that the head makes them of."""
    model, table = load_model(folder), tiny_store.read("valid")
    score_N, state_ND = model.describe(table)
    np.testing.assert_array_equal(score_N, model.score(table))
    assert (state_ND.dtype, state_ND.shape) == (np.float32, (16, 32))
    with torch.no_grad():
        again_N = model.model.decide(torch.from_numpy(state_ND)).numpy()
    np.testing.assert_allclose(again_N, score_N, rtol=1e-5)
    # Longer texts are batched first; each row's state stands where the row does.
    single = table.slice(5, 1)
    np.testing.assert_allclose(model.describe(single)[1][0], state_ND[5], atol=1e-5)


def test_what_feeds_the_model_comes_back(folder: Path, trained: StageLoop) -> None:
    model = load_model(folder)
    assert (model.config, model.protocol, model.lowercase) == (trained.config, "mosi", False)
    assert model.label_range == (-3.0, 3.0)
    assert not model.model.training
    assert model.standardisers.keys() == {"audio", "vision"}
    for name, standardiser in trained.features.standardisers.items():
        np.testing.assert_array_equal(model.standardisers[name].mean_A, standardiser.mean_A)
        np.testing.assert_array_equal(model.standardisers[name].deviation_A, standardiser.deviation_A)
    state = trained.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.model.state_dict().items())


def test_scores_are_in_label_units(
    new_loop: NewLoop, tiny_store: DatasetStore, tmp_path: Path, tiny_features: Features
) -> None:
    """On [1, 5] a model's zero is 3, and its tanh reaches 7/3."""
    loop = new_loop()
    with torch.no_grad():
        loop.model.head[2].weight.zero_()  # type: ignore[operator]
        loop.model.head[2].bias.zero_()  # type: ignore[operator]
    model = load_model(saved(tmp_path, loop, label_range=(1.0, 5.0)))
    assert set(model.score(tiny_store.read("valid")).tolist()) == {3.0}
    assert model.model.output_scale == pytest.approx(7 / 3)


def test_lower_casing_is_part_of_the_model(
    folder: Path, trained: StageLoop, tiny_store: DatasetStore, tmp_path: Path
) -> None:
    table = tiny_store.read("valid")
    text = pa.array([text.upper() for text in table["text"].to_pylist()])
    upper = table.set_column(table.column_names.index("text"), "text", text)
    model = load_model(saved(tmp_path, trained, lowercase=True))
    np.testing.assert_array_equal(model.score(upper), model.score(table))
    assert not np.array_equal(load_model(folder).score(upper), load_model(folder).score(table))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: flipped(folder / "model.safetensors"), "model.safetensors: its SHA-256 differs"),
        (lambda folder: flipped(folder / "config.json"), "config.json: its SHA-256 differs"),
        (lambda folder: flipped(folder / "tokenizer/tokenizer.json"), "tokenizer/tokenizer.json: its SHA-256 differs"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: missing"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
        (lambda folder: (folder / "tokenizer/tokenizer.json").unlink(), "tokenizer/tokenizer.json: missing"),
        (lambda folder: (folder / "tokenizer/special_tokens_map.json").write_text("{}"), "not in manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": 3}'), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {}}'), "config.json: not in manifest.json"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer/tokenizer.json: missing"),
    ],
)
def test_damaged_folder_is_refused(best: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(best)
    with pytest.raises(DataError, match=message):
        load_model(best)


@pytest.mark.parametrize("content", ["{", '{"files": 3}', "[1]"])
def test_damaged_manifest_is_not_extended(best: Path, content: str) -> None:
    """A search that resumes looks at the manifest first; it must not take the model for a whole or a missing one."""
    place = storage_path(best)
    assert is_complete(place, [])
    (best / "manifest.json").write_text(content)
    for use in (is_complete, extend_manifest):
        with pytest.raises(DamagedError, match=r"best: manifest\.json cannot be read"):
            use(place, [])
    assert (best / "manifest.json").read_text() == content


def test_what_is_no_part_of_the_model_is_named(best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The card is its owner's, who may add a licence, and leave out predictions, which hold texts."""
    (best / "predictions").mkdir()
    (best / "predictions" / "test.parquet").write_text("texts")
    extend_manifest(storage_path(best), ["predictions/test.parquet"])
    (best / "README.md").write_text("mine")
    load_model(best)
    assert capsys.readouterr().err == ""
    shutil.rmtree(best / "predictions")
    (best / "LICENSE").write_text("free")
    load_model(best)
    assert capsys.readouterr().err.splitlines() == [
        f"note: {best}: LICENSE is not in manifest.json",
        f"note: {best}: predictions/test.parquet is missing",
    ]
    (best / "predictions").mkdir()
    (best / "predictions" / "test.parquet").write_text("other texts")
    with pytest.raises(DataError, match=r"predictions/test\.parquet: "):
        load_model(best)


def test_a_model_of_the_first_format_opens_with_a_note(
    folder: Path, best: Path, tiny_store: DatasetStore, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(best, format=1, weights_sha256=file_sha256(best / "model.safetensors"))
    (best / "manifest.json").unlink()
    table = tiny_store.read("valid")
    np.testing.assert_array_equal(load_model(best).score(table), load_model(folder).score(table))
    assert capsys.readouterr().err.startswith(f"note: {best} was saved by an earlier version")
    flipped(best / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors is missing, or"):
        load_model(best)


STATISTICS = {"mean": [0.0] * 3, "deviation": [1.0] * 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "config.json cannot be read"),
        ([1], "config.json cannot be read"),
        ({"format": "new"}, "config.json cannot be read"),
        ({"format": 99}, "a newer grcf_ray"),
        ({"modality_dims": {"audio": 5}}, "model.safetensors does not fit config.json"),
        ({"modality_dims": {"audio": 10**9, "vision": 3}}, "model.safetensors does not fit config.json"),
        ({"modality_dims": {"audio": "wide"}}, "config.json describes no model"),
        ({"backbone": {"model_type": "own"}}, "config.json describes no model"),
        ({"backbone": 7}, "config.json describes no model"),
        ({"settings": {"seed": "many"}}, "seed = 'many'"),
        ({"label_range": [3]}, "config.json describes no model"),
        ({"standardisers": {}}, "standardisers has no audio, vision"),
        ({"standardisers": {"audio": {"mean": [1.0], "deviation": [1.0] * 5}}}, "should have 5 columns"),
        ({"standardisers": {"audio": {"mean": [0.0] * 5, "deviation": [1.0]}}}, "should have 5 columns"),
        ({"standardisers": {"vision": {**STATISTICS, "deviation": [1.0, 0.0, 1.0]}}}, "a deviation of 0"),
        ({"standardisers": {"vision": {**STATISTICS, "mean": [1.0, float("nan"), 1.0]}}}, "not finite"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(best: Path, changes: Any, message: str) -> None:
    """Whoever wrote it: the manifest is right. Nothing is broadcast."""
    if isinstance(changes, dict):
        configure(best, **changes)
    else:
        (best / "config.json").write_text("{" if changes is None else json.dumps(changes))
        write_manifest(best)
    with pytest.raises(DataError, match=message):
        load_model(best)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 10**6},
        {"num_hidden_layers": 900},
        {"vocab_size": 10**4},
        {"num_labels": 10**9},
    ],
)
def test_a_hostile_size_allocates_nothing(best: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]) -> None:
    """Some are beyond what the weights can be; of the others the shapes alone are built."""
    configure(best, backbone={**json.loads((best / "config.json").read_text())["backbone"], **sizes})
    built = []

    def build(*arguments: Any, **named: Any) -> Any:
        model = build_model(*arguments, **named)
        built.append(next(model.parameters()).device.type)
        return model

    monkeypatch.setattr("grcf_ray.train.export.build_model", build)
    with pytest.raises(DataError, match="does not fit"):
        load_model(best)
    assert built in ([], ["meta"])


def test_tables_that_the_model_cannot_read(folder: Path, tiny_store: DatasetStore) -> None:
    model, table = load_model(folder), tiny_store.read("valid")
    for name in ("text", "audio", "vision"):
        with pytest.raises(DataError, match=f"no {name} column"):
            model.score(table.drop_columns([name]))
    for audio in ([[[1.0, 2.0, 3.0]]], [[[1.0] * 5, [2.0] * 4]], ["loud"]):
        odd = table.slice(0, 1).drop_columns(["audio"]).append_column("audio", pa.array(audio))
        with pytest.raises(DataError, match=r"audio column .* 5 numbers"):
            model.score(odd)


def test_table_of_looser_types(folder: Path, tiny_store: DatasetStore) -> None:
    """As somebody would make one by hand, who knows neither ids nor labels."""
    table = tiny_store.read("valid")
    loose = pa.table({name: table[name].to_pylist() for name in ("text", "audio", "vision")})
    assert loose.schema.field("audio").type == pa.list_(pa.list_(pa.float64()))
    np.testing.assert_array_equal(load_model(folder).score(loose), load_model(folder).score(table))
    nobody = loose.set_column(1, "audio", pa.nulls(16)).set_column(2, "vision", pa.nulls(16))
    assert np.isfinite(load_model(folder).score(nobody)).all()


def test_samples_may_lack_a_modality(folder: Path, tiny_store: DatasetStore) -> None:
    """One, or all of them: the score is that of a missing sample, wherever it stands."""
    table = tiny_store.read("valid")
    model: SavedModel = load_model(folder)
    scores = model.score(table)
    place = table.column_names.index("audio")
    nobody = table.set_column(
        place, table.schema.field("audio"), pa.nulls(len(table), table.schema.field("audio").type)
    )
    without = model.score(nobody)
    lacks = np.array([cell is None for cell in table["audio"].to_pylist()])
    assert lacks.any() and not lacks.all()
    np.testing.assert_allclose(without[lacks], scores[lacks], atol=1e-6)
    assert not np.isclose(without[~lacks], scores[~lacks]).any()


def test_modality_that_the_model_does_not_see_is_left_alone(
    new_loop: NewLoop, tiny_store: DatasetStore, tmp_path: Path
) -> None:
    """Text alone: a table with audio of any width, or none, gives the same."""
    loop = new_loop(model__modalities="text")
    model = load_model(saved(tmp_path, loop))
    table = tiny_store.read("valid")
    scores = model.score(table)
    np.testing.assert_array_equal(model.score(table.drop_columns(["audio", "vision"])), scores)
    loose = table.drop_columns(["audio", "vision"]).append_column("audio", pa.array([[[1.0, 2.0]]] * len(table)))
    np.testing.assert_array_equal(model.score(conform(loose)), scores)
