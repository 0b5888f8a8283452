"""The command: which run it starts from, and what it says where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

Reproduce = Callable[..., tuple[int, str, str]]


def test_a_data_set_stands_for_its_finished_search(fresh: Path, tmp_path: Path, reproduce: Reproduce) -> None:
    # What else lies there: another data set's search, the baseline, one that goes on, and a folder of somebody's.
    run = json.loads((fresh / "run.json").read_text())
    changes = {"another": {"data": {"name": "other"}}, "tiny-direct": {}, "tiny-unfinished": {"state": "running"}}
    for name, change in changes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(run | change))
    (tmp_path / "notes").mkdir()
    words = ("curves", "--dataset", "tiny")
    code, out, _ = reproduce(*words, "--storage", tmp_path)
    assert code == 0 and str(fresh / "reproduce" / "curves" / "index.html") in out.replace("\n", "")
    assert (fresh / "reproduce" / "curves" / "result.json").exists()

    shutil.copytree(fresh, tmp_path / "tiny-2")
    code, _, err = reproduce(*words, "--storage", tmp_path)
    assert code == 2 and f"--from {fresh} or {tmp_path / 'tiny-2'}" in err
    assert reproduce(*words, "--from", tmp_path / "tiny-2")[0] == 0


def test_what_cannot_be_started_from_is_said(fresh: Path, tmp_path: Path, reproduce: Reproduce) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in [
        (["curves"], "--dataset NAME, or --from RUN"),
        (["curves", "--dataset", "tiny", "--storage", tmp_path / "empty"], "python -m grcf_ray.search --dataset tiny"),
        (["curves", "--dataset", "mosi", "--from", fresh], "a search of tiny, not of mosi"),
        (["curve", "--dataset", "tiny"], "no experiment 'curve'"),
        (["complexity"], "--dataset NAME"),
        (["complexity", "--from", fresh, "--backbone", "bert"], "--backbone is for complexity without a run"),
    ]:
        code, _, err = reproduce(*words)
        assert code == 2 and message in err.replace("\n", " ")


def test_complexity_of_a_run_is_its_configurations(fresh: Path, reproduce: Reproduce) -> None:
    code, out, err = reproduce("complexity", "--from", fresh, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert "tiny, tiny-bert" in answer["title"] and answer["run"].startswith("tiny, winner stage2/4")
    # The winner sees no vision.
    counts = {row["title"] for row in answer["tables"][0]["rows"]}
    assert "Audio Pooler" in counts and "Vision Pooler" not in counts
