"""Whether what is asked for is the run that lies there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grcf_ray.config import flatten
from grcf_ray.data.store import DatasetStore, find_data
from grcf_ray.errors import ConfigError, DataError
from grcf_ray.search.record import RunRecord
from grcf_ray.search.run_lookup import (
    FREE,
    GROWING,
    check_encoder,
    differences,
    encoder_of,
    find_run,
    grown,
    kept_budgets,
    note_encoder,
    recorded_store,
    runs_place,
)
from grcf_ray.search.schema import RunInfo
from grcf_ray.search.space import Space, load_space, run_space
from grcf_ray.storage import StoragePath, storage_path


@pytest.fixture
def space(tiny_space: Path) -> Space:
    return resolved(tiny_space)


def resolved(path: Path) -> Space:
    """Return a space as a search records it, without `auto`."""
    settings = {"search.concurrent": 1, "search.gpus_per_worker": 0, "train.precision": "float32"}
    return load_space(path).with_settings(settings)


@pytest.fixture
def store(tiny_store: DatasetStore) -> DatasetStore:
    return tiny_store


@pytest.fixture
def runs(space: Space, store: DatasetStore, tmp_path: Path) -> StoragePath:
    """A folder that holds a search of the space under the name `n`."""
    info, config = store.info, space.config()
    data = {"folder": "", "name": info.name, "task": info.task, "fingerprint": info.fingerprint}
    RunRecord(storage_path(tmp_path / "runs" / "n")).write_run(
        {
            "state": "finished",
            "starts": [{"time": "", "command": "search"}],
            "space": space.as_dict(),
            "settings": flatten(config),
            "data": {**data, "label_range": list(info.label_range)},
            "encoder": encoder_of(config),
            "versions": {},
        }
    )
    return storage_path(tmp_path / "runs")


def test_moved_data_are_read_as_the_run_read_them(runs: StoragePath, tmp_path: Path) -> None:
    """With its columns and its kind of label, although the cached import is gone."""
    rows = "".join(f"Said {row},Heard {row},{row % 2}\n" for row in range(300))
    (tmp_path / "own.csv").write_text(f"text,body,label\n{rows}")
    read = find_data("own", tmp_path / "own.csv", columns={"text": "body"})
    content = (runs / "n" / "run.json").read_json()
    content["data"] = {
        "folder": str(tmp_path / "gone"),
        "name": "own",
        "task": read.info.task,
        "fingerprint": read.info.fingerprint,
        "label_range": list(read.info.label_range),
        "columns": dict(read.info.columns),
    }
    (runs / "n" / "run.json").write_json(content)
    (tmp_path / "own.csv").rename(tmp_path / "moved.csv")
    record = RunRecord(runs / "n")
    assert recorded_store(record, tmp_path / "moved.csv").texts("train") == read.texts("train")
    assert recorded_store(record, read.folder) == read
    with pytest.raises(DataError, match="no longer exists"):
        recorded_store(record, None)


def described(runs: StoragePath) -> RunInfo:
    return RunRecord(runs / "n").search_info()


def test_the_same_again_does_not_differ(runs: StoragePath, space: Space, store: DatasetStore) -> None:
    assert differences(described(runs), space, store) == []


def test_each_difference_has_a_line(runs: StoragePath, space: Space, store: DatasetStore, tmp_path: Path) -> None:
    """A setting; a searched one that is fixed now, which is two; other bounds; other data."""
    run = described(runs)
    assert differences(run, space.with_settings({"seed": 7, "stage2.epochs": 4}), store) == [
        "seed: 42 -> 7",
        "stage2.epochs: 3 -> 4",
    ]
    fixed = differences(run, space.with_settings({"stage1.head_lr": 1e-3}), store)
    assert fixed[0] == "stage1.head_lr: 0.0002 -> 0.001"
    assert fixed[1].startswith("stage1.head_lr (searched): {")
    assert fixed[1].endswith(" -> None")
    assert len(fixed) == 2
    other = tmp_path / "other.yaml"
    other.write_text(Path(space.source).read_text().replace("{low: 0.05, high: 0.5", "{low: 0.05, high: 0.6"))
    (line,) = differences(run, resolved(other), store)
    assert line.startswith("ranking.intra_margin (searched): ")
    run.data.fingerprint = "another"
    assert differences(run, space, store) == [f"data: another -> {store.info.fingerprint}"]


def test_a_run_from_before_a_setting_had_what_was_done_then(
    runs: StoragePath, space: Space, store: DatasetStore
) -> None:
    """Where it decides anything, which rows of words have to be for."""
    content = (runs / "n" / "run.json").read_json()
    del content["settings"]["features.special_rows"]
    (runs / "run" / "run.json").write_json(content)
    run = RunRecord(runs / "run").search_info()
    assert differences(run, space, store) == []
    aligned: Any = SimpleNamespace(info=dataclasses.replace(store.info, word_aligned=True))
    run.data.fingerprint = aligned.info.fingerprint
    assert differences(run, space, aligned) == ["features.special_rows: zero -> none"]
    assert differences(run, space.with_settings({"features.special_rows": "zero"}), aligned) == []
    assert run_space(run, "").config().features.special_rows == "zero"
    run.settings["features.special_rows"] = "none"
    assert run_space(run, "").config().features.special_rows == "none"


def test_auto_is_what_the_run_had(runs: StoragePath, space: Space, store: DatasetStore) -> None:
    """A run that began on GPUs goes on with them; one from before the setting had none."""
    content = (runs / "n" / "run.json").read_json()
    for recorded, kept in ((1.0, 1.0), (None, 0.0)):
        content["settings"]["search.gpus_per_worker"] = recorded
        if recorded is None:
            del content["settings"]["search.gpus_per_worker"]
        (runs / "run" / "run.json").write_json(content)
        record = RunRecord(runs / "run")
        auto = space.with_settings({"search.gpus_per_worker": "auto"})
        assert differences(record.search_info(), auto, store) == []
        assert grown(record, auto).config().search.gpus_per_worker == kept
        half = space.with_settings({"search.gpus_per_worker": 0.5})
        assert differences(record.search_info(), half, store) == [f"search.gpus_per_worker: {kept} -> 0.5"]
        assert grown(record, half).config().search.gpus_per_worker == 0.5


@pytest.mark.parametrize(
    ("recorded", "kept"),
    [
        ({"train.precision": "bfloat16"}, "bfloat16"),
        ({"train.precision": "float32", "search.gpus_per_worker": 1.0}, "float32"),
        ({"train.precision": "auto"}, "float32"),
        ({"train.precision": "auto", "search.gpus_per_worker": 0.5}, "bfloat16"),
        ({"train.precision": "auto", "search.gpus_per_worker": 1.0, "train.device": "cpu"}, "float32"),
    ],
)
def test_a_run_keeps_its_precision(
    runs: StoragePath, space: Space, store: DatasetStore, recorded: dict[str, Any], kept: str
) -> None:
    """Whatever this machine has; a run of an earlier release recorded `auto`, which meant bfloat16 on GPUs alone."""
    content = (runs / "n" / "run.json").read_json()
    content["settings"].update({"search.gpus_per_worker": 0.0, **recorded})
    (runs / "run" / "run.json").write_json(content)
    record = RunRecord(runs / "run")
    same = {path: value for path, value in recorded.items() if path != "train.precision"}
    auto = space.with_settings({"train.precision": "auto", "search.gpus_per_worker": 0.0, **same})
    assert differences(record.search_info(), auto, store) == []
    assert grown(record, auto).config().train.precision == kept
    assert run_space(record.search_info(), "").config().train.precision == kept
    double = auto.with_settings({"train.precision": "float64"})
    assert differences(record.search_info(), double, store) == [f"train.precision: {kept} -> float64"]


@pytest.mark.parametrize("key", sorted(FREE))
def test_free_settings_may_change(key: str, runs: StoragePath, space: Space, store: DatasetStore) -> None:
    assert differences(described(runs), space.with_settings({key: 77}), store) == []


def test_free_and_growing_settings_exist(space: Space) -> None:
    assert FREE | set(GROWING) <= flatten(space.config()).keys()
    assert not FREE & set(GROWING)


@pytest.mark.parametrize("key", GROWING)
@pytest.mark.parametrize("trials", [1, 77])
def test_budgets_may_change_and_only_grow(
    key: str, trials: int, runs: StoragePath, space: Space, store: DatasetStore
) -> None:
    record, asked = RunRecord(runs / "n"), space.with_settings({key: trials})
    assert differences(record.search_info(), asked, store) == []
    before, after = flatten(space.config()), flatten(grown(record, asked).config())
    assert after == {**before, key: max(before[key], trials)}


def test_a_new_run_has_the_budgets_that_are_asked_for(space: Space, tmp_path: Path) -> None:
    asked = space.with_settings({GROWING[0]: 1})
    assert grown(RunRecord(storage_path(tmp_path / "new")), asked) is asked


def test_a_free_name_and_ones_own_are_found(runs: StoragePath, space: Space, store: DatasetStore) -> None:
    for force in (False, True):
        assert str(find_run(runs, "new", space, store, force=force)) == str(runs / "new")
        assert str(find_run(runs, "n", space, store, force=force)) == str(runs / "n")


def test_another_run_is_refused_with_the_differences_and_the_ways_out(
    runs: StoragePath, space: Space, store: DatasetStore
) -> None:
    with pytest.raises(ConfigError) as caught:
        find_run(runs, "n", space.with_settings({"seed": 7}), store, force=False)
    head, changed, remedy = str(caught.value).splitlines()
    assert str(runs / "n") in head and changed == "  seed: 42 -> 7"
    assert all(word in remedy for word in ("--name NAME", "--force", "n-2"))


def test_force_takes_the_first_name_that_is_free_or_ones_own(
    runs: StoragePath, space: Space, store: DatasetStore
) -> None:
    """Asked for again, it is the same name again."""
    seven = space.with_settings({"seed": 7})
    assert find_run(runs, "n", seven, store, force=True).place.name == "n-2"
    eight = storage_path(Path(str(runs)) / "n-2")
    eight.make_private()
    settings = flatten(space.with_settings({"seed": 8}).config())
    RunRecord(eight).write_run({**RunRecord(runs / "n").read_run(), "settings": settings})
    assert find_run(runs, "n", seven, store, force=True).place.name == "n-3"
    assert find_run(runs, "n", space.with_settings({"seed": 8}), store, force=True).place.name == "n-2"
    assert find_run(runs, "n", space, store, force=True).place.name == "n"


def test_an_encoder_is_known_by_its_weights(
    runs: StoragePath, tiny_backbone: Path, space: Space, tmp_path: Path
) -> None:
    """Not by its folder alone."""
    from safetensors.numpy import load_file, save_file

    from grcf_ray.train.assemble import backbone_sha256, pretrained_backbone

    folder, record = tmp_path / "encoder", RunRecord(runs / "n")
    shutil.copytree(tiny_backbone, folder)
    config = space.with_settings({"model.backbone": str(folder)}).config()
    record.update_run(encoder=encoder_of(config))
    check_encoder(record, config, otherwise="go")
    check_encoder(RunRecord(runs / "new"), config, otherwise="go")
    weights = load_file(folder / "model.safetensors")
    first = weights[min(weights)]
    first.flat[0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # As another process sees it.
    pretrained_backbone.cache_clear()
    backbone_sha256.cache_clear()
    with pytest.raises(ConfigError, match=r"weights of .* changed since .*n "):
        check_encoder(record, config, otherwise="go")
    # Another encoder is a difference of settings.
    check_encoder(record, space.config(), otherwise="go")
    # A run of the first releases is gone on with, and held to what it goes on with.
    run = record.read_run()
    del run["encoder"]
    record.write_run(run)
    check_encoder(record, config, otherwise="go")
    note_encoder(record, config)
    note_encoder(record, space.config())
    assert record.read_run()["encoder"] == encoder_of(config)


def test_where_runs_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(runs_place(None)) == str(tmp_path / "runs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({}))
    assert str(runs_place(None)) == str(tmp_path / "home" / "grcf_runs")
    monkeypatch.setenv("GRCF_RUNS", "elsewhere")
    assert str(runs_place(None)) == str(tmp_path / "elsewhere")
    assert str(runs_place("there")) == str(tmp_path / "there")


@pytest.mark.parametrize(
    "name", ["", "..", "../n", "/tmp/n", "a/b", "a\\b", "a\0b", "a\nb", ".hidden", "n" * 201, "ä" * 101]
)
def test_a_name_that_leads_out_of_the_storage_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--name .*--name NAME$"):
        find_run(storage_path(tmp_path / "runs"), name, None, None, force=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["n", "mosi-all-MiniLM-L6-v2-seed42", "a..b", "über uns", "n" * 200])
def test_names_of_folders_are_taken(tmp_path: Path, name: str) -> None:
    assert find_run(storage_path(tmp_path), name, None, None, force=False).place.name == name


def test_smaller_budgets_than_the_records_are_told(tmp_path: Path) -> None:
    record = RunRecord(storage_path(tmp_path / "run"))
    assert kept_budgets(record, {"search.stage1_trials": 1}) == []
    record.write_run({"state": "finished", "settings": {"search.stage1_trials": 12, "search.stage2_trials": 5}})
    (told,) = kept_budgets(record, {"search.stage1_trials": 6, "search.stage2_trials": 5, "seed": 1})
    assert told.startswith("search.stage1_trials = 6 ") and "12" in told
    assert kept_budgets(record, {}) == []
