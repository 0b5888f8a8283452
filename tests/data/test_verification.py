"""What is damaged is told from what merely differs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from grcf_ray import console
from grcf_ray.cli.data import app
from grcf_ray.data.store import DatasetStore, find_data
from grcf_ray.data.verification import verify_store


def verdicts(store: DatasetStore) -> dict[str, str]:
    return {check.what: check.verdict for check in verify_store(store)}


def test_the_demo_is_as_published() -> None:
    found = verdicts(find_data("demo"))
    assert set(found) == {"train.parquet", "valid.parquet", "test.parquet", "source utterances.csv", "train/valid/test"}
    assert set(found.values()) == {"ok"}


def test_own_data_have_no_fact_sheet(tiny_store: DatasetStore) -> None:
    assert verdicts(tiny_store) == dict.fromkeys(("train.parquet", "valid.parquet", "test.parquet"), "ok")


def test_what_differs_and_what_is_unknown(tiny_parquet: Path) -> None:
    found = verdicts(find_data("mosi", tiny_parquet))
    assert found["source tiny.parquet"] == "unknown"
    assert found["train/valid/test"] == found["audio values a row"] == found["vision values a row"] == "differs"


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
    with pytest.raises(SystemExit) as ended:
        console.run(app, ["verify", str(folder)])
    assert ended.value.code == 3
    out, err = capsys.readouterr()
    assert "damaged" in out
    assert "valid.parquet changed since the import" in err
