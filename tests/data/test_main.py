from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from commands import Run, command

from grcf_ray.cli.data import app
from grcf_ray.data.importers import formats
from grcf_ray.data.store import DatasetStore

CSV = "id,split,text,label\na,train,so [bold]good[/bold],1\nb,valid,y,2\nc,test,secret,3\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRCF_DATA", raising=False)
    monkeypatch.setenv("GRCF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own.csv").write_text(CSV)
    return command(app, capsys)


def test_import_writes_a_store_and_says_what_it_holds(run: Run, tmp_path: Path) -> None:
    code, out, err = run("import", "own.csv", "--dataset", "own", "--label-range", "-1", "5")
    assert code == 0
    assert err == "reading own.csv\n"
    assert "data set     own: regression, labels -1 to 5, language unknown" in out
    assert f"folder       {tmp_path / 'data' / 'own'}" in out
    assert [line.split() for line in out.splitlines() if line.startswith(("train", "valid", "test"))] == [
        ["train", "1", "1.000", "1.000", "1.000", "0.000"],
        ["valid", "1", "2.000", "2.000", "2.000", "0.000"],
        ["test", "1", "-", "-", "-", "-"],
    ]
    assert sorted(path.name for path in (tmp_path / "data" / "own").iterdir()) == [
        "dataset.json",
        "test.parquet",
        "train.parquet",
        "valid.parquet",
    ]


def test_a_file_alone_is_enough(run: Run, tmp_path: Path) -> None:
    rows = "".join(f"Said {row};{row % 5 + 1};s{row % 50}\n" for row in range(300))
    (tmp_path / "reviews.csv").write_text(f"review;stars;speaker\n{rows}")
    code, out, _ = run("import", "reviews.csv")
    assert (code, (tmp_path / "data" / "reviews" / "dataset.json").is_file()) == (0, True)
    assert "data set     reviews: regression, labels 1 to 5, language unknown" in out
    for said in (
        "columns: text from 'review', label from 'stars'",
        "not used: 'speaker'",
        "210/30/60",
        "--label-range",
    ):
        assert any(said in line for line in out.splitlines() if line.startswith("note: ")), said
    words = ("--text-column", "speaker", "--label-column", "stars", "--group-column", "review", "--out", "other")
    assert run("import", "reviews.csv", *words)[0] == 0
    assert DatasetStore.open(tmp_path / "other").info.columns == {
        "text": "speaker",
        "label": "stars",
        "group": "review",
    }


def test_import_goes_to_the_data_folder_or_where_it_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRCF_DATA", str(tmp_path / "all"))
    words = ("import", "own.csv", "--dataset", "own", "--label-range", "1", "5")
    assert run(*words)[0] == 0
    assert run(*words, "--out", "there/own")[0] == 0
    assert (tmp_path / "all" / "own" / "dataset.json").is_file()
    assert (tmp_path / "there" / "own" / "dataset.json").is_file()


def test_the_command_that_cleans_writes_the_store_that_was_asked_for(run: Run, tmp_path: Path) -> None:
    """As it is printed, it reads the source the same way, and leaves the store in the usual folder alone."""
    run("import", "own.csv", "--dataset", "own", "--label-range", "1", "5")
    before = (tmp_path / "data" / "own" / "dataset.json").read_bytes()
    rows = 'a,train,x,1,"[[NaN, 1]]"\nb,valid,y,2,\nc,test,z,3,\n'
    (tmp_path / "own.csv").write_text(f"id,split,text,label,audio\n{rows}")
    words = ("import", "own.csv", "--dataset", "own", "--label-range", "1", "5", "--format", "table")
    code, _, err = run(*words, "--out", "a place/own")
    assert code == 3
    _, _, command = err.strip().partition("Clean it: python -m grcf_ray.data ")
    assert shlex.split(command) == [*words, "--out", "a place/own", "--non-finite", "zero"]
    assert run(*shlex.split(command))[0] == 0
    assert (tmp_path / "a place" / "own" / "dataset.json").is_file()
    assert (tmp_path / "data" / "own" / "dataset.json").read_bytes() == before


def test_failed_import_exits_3_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(CSV + "a,train,again,9\n")
    code, out, err = run("import", "own.csv", "--dataset", "own", "--label-range", "1", "5")
    assert (code, out) == (3, "")
    assert "error: own.csv: 2 faults" in err
    assert "row 4 (id a): row 1 has the same id" in err
    assert "row 4 (id a): label 9 lies outside [1, 5]" in err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("import", "own.csv", "--dataset", "mosii"), 2, "'mosii' is unknown, but nearly mosi"),
        (("import", "mosi.csv"), 2, "mosi.csv is named like the data set CMU-MOSI"),
        (("import", "own.csv", "--dataset", "mosi", "--label-range", "-1", "1"), 2, "annotated on -3 3"),
        (("import", "own.csv", "--dataset", "mosi", "--format", "cds"), 2, "unknown format 'cds'"),
        (("import", "none.csv", "--dataset", "mosi"), 3, "none.csv does not exist"),
        (("import", "own.csv", "--dataset", "mosi", "--out", "."), 2, "holds other files (own.csv)"),
        (("import", "own.csv", "--dataset", "mosi", "--non-finite", "drop"), 2, "'drop' is not one of"),
        (("import", "own.csv", "--text-column", "body"), 3, "--text-column body: no such column"),
        (("inspect", "mosi"), 3, "needed: mosi.pkl of MAG-BERT, aligned_50.pkl or unaligned_50.pkl of MMSA"),
        (("inspect", "."), 3, "holds no imported data set"),
        (("inspct",), 2, "No such command 'inspct'"),
    ],
)
def test_refusals(run: Run, words: tuple[str, ...], code: int, message: str) -> None:
    got, out, err = run(*words)
    assert (got, out) == (code, "")
    assert message in err


def test_inspect_shows_training_rows_and_leaves_test_closed(run: Run, tmp_path: Path) -> None:
    run("import", "own.csv", "--dataset", "own", "--label-range", "1", "5")
    (tmp_path / "data" / "own" / "test.parquet").unlink()
    code, by_name, _ = run("inspect", "own")
    assert code == 0
    assert "a   1.000  so [bold]good[/bold]" in by_name
    assert run("inspect", "data/own") == (0, by_name, "")


def test_store_is_not_imported_again(run: Run) -> None:
    run("import", "own.csv", "--dataset", "own", "--label-range", "1", "5")
    code, _, err = run("import", "data/own", "--dataset", "own", "--label-range", "1", "5", "--out", "again")
    assert code == 2
    assert "data/own is imported already" in err


def test_known_names_are_known_in_any_case(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("import", "own.csv", "--dataset", "MOSI")
    assert (code, "data set     mosi:" in out) == (0, True)
    assert (tmp_path / "data" / "mosi" / "dataset.json").exists()
    assert "data set     mosi:" in run("inspect", "Mosi")[1]
    assert run("verify", "MoSi")[0] == 0


def test_other_data_of_the_same_name_are_not_replaced(run: Run, tmp_path: Path) -> None:
    words = ("import", "own.csv", "--dataset", "own", "--label-range", "0", "5")
    assert run(*words)[0] == 0
    assert run(*words)[0] == 0
    folder = tmp_path / "data" / "own"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "own.csv").write_text(CSV.replace("secret,3", "secret,4"))
    code, out, err = run(*words)
    assert (code, out) == (3, "")
    assert "--overwrite" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["own"]
    assert run(*words, "--overwrite")[0] == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} != before
    (folder / "dataset.json").write_text("{")
    assert run(*words)[0] == 0


def test_data_that_cannot_be_trained_on_are_imported_and_said_to_be(run: Run) -> None:
    code, out, _ = run("import", "own.csv", "--dataset", "own", "--label-range", "0", "40")
    assert code == 0
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert all(
        f"all labels of the {split} split" in note for split, note in zip(("train", "valid"), notes, strict=True)
    )


def test_cache_is_shown_and_cleared(run: Run, tmp_path: Path) -> None:
    for kind, size in (("tables", 3000), ("features", 2_000_000)):
        entry = tmp_path / "cache" / kind / ("0123456789ab" * 2)
        entry.mkdir(parents=True)
        (entry / "file").write_bytes(bytes(size))
    (tmp_path / "cache" / "mine").touch()
    code, out, _ = run("cache")
    assert code == 0
    assert f"cache {tmp_path / 'cache'}" in out
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["tables", "1", "0.0", "MB"],
        ["features", "1", "2.0", "MB"],
        ["total", "2", "2.0", "MB"],
    ]
    code, out, _ = run("cache", "--clear")
    assert (code, "removed" in out) == (0, True)
    assert run("cache")[1].splitlines()[-1].split() == ["total", "0", "0.0", "MB"]
    assert (tmp_path / "cache" / "mine").exists()
    assert (tmp_path / "own.csv").exists()


def test_list_says_what_is_here_and_where_to_get_the_rest(run: Run) -> None:
    run("import", "own.csv", "--dataset", "own", "--label-range", "1", "5")
    run("import", "own.csv", "--dataset", "mosi")
    code, out, _ = run("list")
    assert code == 0
    here = {line.split()[0]: line.split()[-1] for line in out.splitlines()[1:8]}
    absent = dict.fromkeys(("mosei", "sims_v2", "mustard", "ur_funny"), "-")
    assert here == {"mosi": "data/mosi", **absent, "demo": "packaged", "own": "data/own"}
    assert "mosei needs mosei.pkl" in out
    assert "mosi needs" not in out


def test_help_names_every_format_and_variant(run: Run) -> None:
    _, out, _ = run("import", "--help")
    listed = out.partition("Formats:")[2].partition("A table has")[0]
    assert {line.split()[0] for line in listed.strip().splitlines()} == set(formats())
    first, *_, last = formats()["mustard"].VARIANTS
    assert f"{first} ... fold-5, {last}" in listed
