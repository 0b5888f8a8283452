"""What is damaged is told from what merely differs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import command

from grcf_ray.cli.data import app
from grcf_ray.data.store import DatasetStore, find_data
from grcf_ray.data.verification import verify_store


def verdicts(store: DatasetStore) -> dict[str, str]:
    return {check.subject: check.verdict for check in verify_store(store)}


def test_the_demo_is_as_published() -> None:
    all_ok = dict.fromkeys(("train.parquet", "valid.parquet", "test.parquet"), "ok")
    all_ok |= {"source utterances.csv": "ok", "train/valid/test": "ok"}
    assert verdicts(find_data("demo")) == all_ok


def test_own_data_have_no_fact_sheet(tiny_store: DatasetStore) -> None:
    assert verdicts(tiny_store) == dict.fromkeys(("train.parquet", "valid.parquet", "test.parquet"), "ok")


def test_what_differs_and_what_is_unknown(tiny_parquet: Path) -> None:
    result = verdicts(find_data("mosi", tiny_parquet))
    assert result["source tiny.parquet"] == "unknown"
    assert result["train/valid/test"] == result["audio values a row"] == result["vision values a row"] == "differs"


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damage_has_its_exit_code(
    damage: str, tiny_store: DatasetStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_store.folder, folder)
    if damage == "changed":
        (folder / "valid.parquet").write_bytes((folder / "valid.parquet").read_bytes() + b"x")
    else:
        (folder / "valid.parquet").unlink()
    code, out, err = command(app, capsys)("verify", folder)
    assert code == 3
    assert "damaged" in out
    assert "valid.parquet changed since the import" in err
