"""The command: which run it starts from, and what it says where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from grcf_ray import console


def reproduce(*words: str) -> int:
    from grcf_ray.cli.reproduce import app

    with pytest.raises(SystemExit) as ended:
        console.run(app, list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_data_set_stands_for_its_finished_search(
    recorded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(recorded.folder, tmp_path / "tiny")
    # What else lies there: another data set's search, the baseline, one that goes on, and a folder of somebody's.
    for name, change in {
        "another": {"data": {"name": "other"}},
        "tiny-direct": {},
        "tiny-unfinished": {"state": "running"},
    }.items():
        (tmp_path / name).mkdir()
        run = json.loads((recorded.folder / "run.json").read_text())
        (tmp_path / name / "run.json").write_text(json.dumps(run | change))
    (tmp_path / "notes").mkdir()
    assert reproduce("curves", "--dataset", "tiny", "--storage", str(tmp_path)) == 0
    capsys.readouterr()
    assert (tmp_path / "tiny" / "reproduce" / "curves" / "result.json").exists()

    shutil.copytree(tmp_path / "tiny", tmp_path / "tiny-2")
    assert reproduce("curves", "--dataset", "tiny", "--storage", str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert f"--from {tmp_path / 'tiny'} or {tmp_path / 'tiny-2'}" in err
    assert reproduce("curves", "--dataset", "tiny", "--from", str(tmp_path / "tiny-2")) == 0


def test_what_cannot_be_started_from_is_said(recorded: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [
        (["curves"], "--dataset NAME, or --from RUN"),
        (["curves", "--dataset", "tiny", "--storage", str(tmp_path)], "python -m grcf_ray.search --dataset tiny"),
        (["curves", "--dataset", "mosi", "--from", str(recorded.folder)], "a search of tiny, not of mosi"),
        (["curve", "--dataset", "tiny"], "no experiment 'curve'"),
    ]:
        assert reproduce(*words) == 2
        assert message in capsys.readouterr().err
