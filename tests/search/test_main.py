"""The search command: its plan, its result, and what the same command does on a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from grcf_ray.config import build_config
from grcf_ray.search.space import load_space
from grcf_ray.search.stages import Search
from tests.search.conftest import Run, copy_recorded

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore
    from tests.conftest import Recorded


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def paths_of(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for name, value in nested.items():
        paths |= paths_of(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return paths


def test_print_config_parses_back(run: Run, tiny_space: Path, tmp_path: Path) -> None:
    argv = ["--dataset", "tiny", "--space", tiny_space, "--storage", tmp_path / "runs", "--print-config"]
    code, out, err = run(*argv, "--set", "stage1.encoder_lr=3e-5", "--seed", "7", "--concurrent", "2")
    assert (code, err) == (0, "")
    settings = {"stage1.encoder_lr": 3e-5, "seed": 7, "search.concurrent": 2}
    assert build_config(paths_of(yaml.safe_load(out))) == load_space(tiny_space).with_settings(settings).config()
    assert not (tmp_path / "runs").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(
    run: Run, ray_session: None, tiny_argv: list[Any], tiny_store: DatasetStore, tmp_path: Path
) -> None:
    """As JSON on standard output, as text beside it; long texts of train and valid are counted."""
    before = tree(tmp_path)
    settings = ("--set", "features.max_tokens=8", "--set", "train.precision=bfloat16")
    code, out, err = run(*tiny_argv, "--dry-run", "--json", "--concurrent", "1", *settings)
    assert code == 0, err
    place = str(tmp_path / "runs" / "tiny-tiny-bert-seed42")
    lines = {line.partition(":")[0]: line for line in err.splitlines()}
    assert "48/16/16 utterances, text + audio + vision" in lines["Data"]
    assert lines["Model"].endswith("tiny-bert, 0 frozen layers, in bfloat16")
    assert "stage 1: 6 x 3 epochs, then stage 2: 5 x 3 epochs; 2 finalists" in lines["Budget"]
    assert "1 trials at a time, 1 CPU each" in lines["Cluster"]
    assert lines["Run"].endswith(place)
    plan = json.loads(out)
    assert plan["run"] == place
    assert plan["data"]["splits"] == {"train": 48, "valid": 16, "test": 16}
    assert plan["stages"] == {"stage1": {"trials": 6, "epochs": 3}, "stage2": {"trials": 5, "epochs": 3}}
    assert plan["cluster"]["concurrent"] == 1
    assert plan["settings"]["features.max_tokens"] == 8
    texts = [text for split in ("train", "valid") for text in tiny_store.read(split)["text"].to_pylist()]
    # Its words are one subword each, but for one of two; two more subwords begin and end a text.
    cut = sum(len(text.split()) + text.split().count("quickly") + 2 > 8 for text in texts)
    assert plan["texts"] == {"cut": cut, "of": 64} and 0 < cut < 64
    assert f"{cut} of 64 texts" in err
    assert tree(tmp_path) == before


def test_what_ray_prints_while_trials_run_is_no_part_of_the_answer(
    run: Run, recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells of dead processes on standard output, whatever it is asked."""
    argv = copy_recorded(recorded, tmp_path)
    path = tmp_path / "recorded" / "run.json"
    path.write_text(path.read_text().replace('"finished"', '"interrupted"'))
    search = Search.run

    def print_and_search(self: Search) -> Any:
        print("(raylet) A worker died")
        return search(self)

    monkeypatch.setattr(Search, "run", print_and_search)
    code, out, err = run(*argv)
    assert code == 0
    assert json.loads(out)["test"] == json.loads(recorded.out)["test"]
    assert "(raylet) A worker died" in err


def test_a_finished_run_prints_its_result_without_training(run: Run, recorded: Recorded) -> None:
    summary = json.loads(recorded.out)
    assert summary["run"] == str(recorded.folder)
    assert {"stages", "valid", "test", "cost", "winner"} <= summary.keys()
    assert "stage 1   1/6" in recorded.err
    before = tree(recorded.folder)
    # The number of trials at a time does not matter.
    code, out, err = run(*recorded.argv, "--concurrent", "2")
    assert (code, json.loads(out)) == (0, summary)
    assert err == f"{recorded.folder} is finished; this is its result\n"
    code, out, err = run(*(word for word in recorded.argv if word != "--json"))
    assert code == 0
    assert "Winner: trial stage2/" in out
    assert tree(recorded.folder) == before


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--seed", "7"], "seed: 42 -> 7"),
        (["--set", "stage1.epochs=4"], "stage1.epochs: 3 -> 4"),
        (["--set", "stage1.head_lr=0.0002"], "stage1.head_lr (searched): {'low': 0.0001"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_with_the_difference(
    run: Run, recorded: Recorded, words: list[str], difference: str
) -> None:
    before = tree(recorded.folder)
    code, out, err = run(*recorded.argv, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {recorded.folder} holds a run with other settings:\n")
    assert f"  {difference}" in err
    assert "--name NAME" in err
    assert tree(recorded.folder) == before


def test_an_encoder_with_other_weights_is_refused(run: Run, recorded: Recorded, tmp_path: Path) -> None:
    """Its folder has the name that it had; what lies there is another encoder."""
    from grcf_ray.search.run_lookup import encoder_of
    from grcf_ray.search.space import load_space

    argv, words = copy_recorded(recorded, tmp_path), ["--stage1-trials", "9"]
    space = load_space(Path(argv[argv.index("--space") + 1]))
    record = json.loads((recorded.folder / "run.json").read_text())
    assert record["encoder"] == encoder_of(space.config())
    folder = tmp_path / "recorded"
    record["encoder"]["weights_sha256"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(record))
    before = tree(folder)
    # Nor may a baseline that is compared with it begin with another one.
    for more in (words, ["--direct", "--name", "recorded-direct"]):
        code, out, err = run(*argv, *more)
        assert (code, out) == (2, "")
        (line,) = (line for line in err.splitlines() if line.startswith("error: "))
        assert line.startswith(f"error: The weights of {record['encoder']['name']} changed since {folder} started")
        assert "--name NAME" in line
        assert tree(folder) == before
    assert not (tmp_path / "recorded-direct").exists()
