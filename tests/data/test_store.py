from __future__ import annotations

import csv
import json
import stat
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grcf_ray.data import store as store_module
from grcf_ray.data.schema import TableInfo, conform
from grcf_ray.data.splits import stratified
from grcf_ray.data.store import DatasetStore, data_name, find_data, resolve_data, usual_folders, write_store
from grcf_ray.errors import ConfigError, DataError

CSV = "id,split,text,label\na,train,x,1\nb,valid,y,2\nc,test,z,3\n"


def make(label: float = 1.0, name: str = "own") -> tuple[pa.Table, TableInfo]:
    loose = {
        "id": ["a", "b", "c", "d"],
        "split": ["train", "test", "valid", "train"],
        "text": ["w", "x", "y", "z"],
        "label": [label, 2.0, 3.0, 4.0],
        "audio": pa.array([[[1.0, 2.0]], None, None, [[3.0, 4.0]]], pa.list_(pa.list_(pa.float32()))),
    }
    table = conform(pa.table(loose))
    return table, TableInfo.describe(table, name=name, label_range=(1, 5))


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRCF_DATA", raising=False)
    monkeypatch.setenv("GRCF_CACHE", str(tmp_path / "cache"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_store_gives_back_what_was_written(tmp_path: Path) -> None:
    table, info = make()
    store = write_store(tmp_path / "deep" / "own", table, info)
    assert names(store.folder) == ["dataset.json", "test.parquet", "train.parquet", "valid.parquet"]
    assert store == DatasetStore.open(tmp_path / "deep" / "own")
    assert store.info == info
    assert store.read("train")["id"].to_pylist() == ["a", "d"]
    assert store.read("train")["audio"].to_pylist() == [[[1, 2]], [[3, 4]]]
    assert store.read("test")["id"].to_pylist() == ["b"]
    assert json.loads(store.read("valid").schema.metadata[b"grcf_ray"]) == info.to_json()
    assert names(tmp_path / "deep") == ["own"]
    # A split is read without the other files.
    (store.folder / "test.parquet").unlink()
    (store.folder / "valid.parquet").unlink()
    assert DatasetStore.open(store.folder).read("train").num_rows == 2


def test_changed_or_missing_split_file_is_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "own", *make())
    path = store.folder / "train.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DataError, match=r"train.parquet changed since its import: SHA-256"):
        store.read("train")
    path.unlink()
    with pytest.raises(DataError, match=r"train.parquet cannot be read \(No such file"):
        store.read("train")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "holds no imported data set. Import one: python -m grcf_ray.data import"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"info": {"schema_version": 1}, "files": {}}', "cannot be read"),
        ('{"info": {"schema_version": 99}, "files": {}}', "layout 99"),
    ],
)
def test_folder_that_is_no_store(tmp_path: Path, index: str | None, message: str) -> None:
    if index is not None:
        (tmp_path / "dataset.json").write_text(index)
    with pytest.raises(DataError, match=message):
        DatasetStore.open(tmp_path)


@pytest.mark.parametrize("present", ["mosi.pkl", "train.parquet"])
def test_other_files_are_never_replaced(tmp_path: Path, present: str) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / present).write_text("mine")
    with pytest.raises(ConfigError, match=rf"holds other files \({present}\). Give another folder: --out DIR"):
        write_store(folder, *make())
    (folder / present).unlink()
    write_store(folder, *make())
    (folder / "mosi.pkl").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        write_store(folder, *make(5.0))
    with pytest.raises(ConfigError, match="is a file"):
        write_store(folder / "mosi.pkl", *make())
    assert (folder / "mosi.pkl").read_text() == "mine"
    assert names(tmp_path) == ["own"]


@pytest.mark.parametrize("step", ["_fill", "write_json"])
def test_failure_leaves_the_old_store_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    old = write_store(tmp_path / "own", *make(1.0))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, step, fail)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_store(tmp_path / "file" / "own", *make())
    (tmp_path / "file").unlink()
    for folder in (tmp_path / "own", tmp_path / "new"):
        with pytest.raises(DataError, match=r"cannot write .* \(No space left on device\)"):
            write_store(folder, *make(5.0))
    assert names(tmp_path) == ["own"]
    assert DatasetStore.open(tmp_path / "own") == old
    assert old.read("train")["label"].to_pylist() == [1.0, 4.0]


def test_old_store_comes_back_when_the_new_one_cannot_move_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = write_store(tmp_path / "own", *make(1.0))
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target.name == "own" and not self.name.endswith(".old"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "own", *make(5.0))
    assert names(tmp_path) == ["own"]
    assert DatasetStore.open(tmp_path / "own") == old


def test_find_imported_store_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = write_store(tmp_path / "data" / "own", *make())
    assert find_data("own") == here
    there = write_store(tmp_path / "elsewhere" / "own", *make(5.0))
    monkeypatch.setenv("GRCF_DATA", str(tmp_path / "elsewhere"))
    assert usual_folders("own")[0] == tmp_path / "elsewhere" / "own"
    assert find_data("own") == there
    assert find_data("own", Path("data") / "own", (1, 5)) == here
    assert find_data("own", Path("data") / "own").folder.is_absolute()


def test_find_imports_foreign_files_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "own.csv"
    source.write_text(CSV)
    store = find_data("own", source, (1, 5))
    assert store.folder.parent == tmp_path / "cache" / "tables"
    assert store.read("valid")["id"].to_pylist() == ["b"]
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "import_source", None)
        assert find_data("own", source, (1.0, 5.0)) == store
    assert find_data("own", source, (0, 5)).folder != store.folder
    source.write_text(CSV.replace("a,train,x,1", "a,train,x,4"))
    assert find_data("own", source, (1, 5)).info.fingerprint != store.info.fingerprint


def test_an_import_is_found_again_by_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "own.csv"
    source.write_text("id,split,text,body,label\na,train,x,u,1\nb,valid,y,v,2\nc,test,z,w,1\n")
    stores = [find_data("own", source, columns=columns) for columns in ({}, {"text": "body"})]
    assert [store.read("train")["text"].to_pylist() for store in stores] == [["x"], ["u"]]
    assert stores[1].info.columns == {"text": "body"}
    monkeypatch.setattr(store_module, "import_source", None)
    assert [find_data("own", source, columns=columns) for columns in ({}, {"text": "body"})] == stores
    assert resolve_data(None, source, columns={"text": "body"}) == ("own", stores[1].folder)
    assert resolve_data(None, source) == ("own", source)


@pytest.mark.parametrize(
    ("name", "dataset", "expected"),
    [
        ("my_reviews.v2.csv", None, "my_reviews.v2"),
        ("my reviews.csv", "reviews", "reviews"),
        ("my reviews.csv", None, "'my reviews' is no name for a data set: .* --dataset NAME"),
        ("mosi.pkl", "mosi", "mosi"),
        ("mosi.pkl", None, "mosi.pkl is named like the data set CMU-MOSI. .* --dataset mosi; .* --dataset NAME"),
        ("MOSI.csv", None, "MOSI.csv is named like the data set CMU-MOSI"),
        ("folder.of/", None, "folder.of"),
        ("store/", None, "sims_v2"),
        (None, "mosi", "mosi"),
        (None, None, "--dataset NAME or --data FILE"),
    ],
)
def test_the_name_of_data_is_given_or_that_of_the_file(
    tmp_path: Path, name: str | None, dataset: str | None, expected: str
) -> None:
    path = None if name is None else tmp_path / name
    if name == "store/":
        assert path is not None
        write_store(path, *make(name="sims_v2"))
    elif name is not None and path is not None:
        path.mkdir() if name.endswith("/") else path.touch()
    if " " in expected:
        with pytest.raises(ConfigError, match=expected):
            data_name(dataset, path)
    else:
        assert data_name(dataset, path) == expected


def test_damaged_cached_import_is_made_again_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "own.csv"
    source.write_text(CSV)
    store = find_data("own", source, (1, 5))
    assert capsys.readouterr().err == ""
    for damage in (lambda path: path.write_bytes(bytes(path.stat().st_size)), lambda path: path.unlink()):
        for name in ("test.parquet", "dataset.json"):
            damage(store.folder / name)
            assert find_data("own", source, (1, 5)) == store
            assert name in capsys.readouterr().err or name == "dataset.json"
            assert store.read("test")["id"].to_pylist() == ["c"]


def test_cached_import_is_its_users_alone(tmp_path: Path) -> None:
    source = tmp_path / "own.csv"
    source.write_text(CSV)
    folder = find_data("own", source, (1, 5)).folder
    for path in (tmp_path / "cache", folder.parent, folder, *folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_store_that_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    table, info = make()
    with pytest.raises(DataError, match="valid split are 3") as caught:
        write_store(tmp_path / "own", table, info).check_trainable()
    assert caught.value.exit_code == 3
    assert str(tmp_path / "own") in str(caught.value)
    assert find_data("demo").check_trainable() == []


def test_find_imports_foreign_files_of_the_usual_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / "mosi").mkdir(parents=True)
    (tmp_path / "data" / "mosi" / "any.csv").write_text(CSV)
    store = find_data("mosi")
    assert store.info.label_range == (-3, 3)
    assert names(tmp_path / "data" / "mosi") == ["any.csv"]


def test_processes_that_import_at_once_share_the_result(tmp_path: Path) -> None:
    source = tmp_path / "own.csv"
    source.write_text(CSV)
    result: list[DatasetStore] = []
    threads = [threading.Thread(target=lambda: result.append(find_data("own", source, (1, 5)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(result) == 4
    assert len({store.folder for store in result}) == 1
    assert result[0].read("train").num_rows == 1


def test_nothing_found_says_what_is_needed_and_where_to_get_it() -> None:
    with pytest.raises(DataError) as caught:
        find_data("mosi")
    message = str(caught.value)
    assert "needed: mosi.pkl of MAG-BERT, aligned_50.pkl or unaligned_50.pkl of MMSA" in message
    assert "from:   MAG-BERT: https://github.com" in message
    assert "python -m grcf_ray.data import FILE --dataset mosi" in message


def test_names_and_label_ranges_that_disagree(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data" / "own", *make())
    source = tmp_path / "own.csv"
    source.write_text(CSV)
    with pytest.raises(ConfigError, match=r"unknown data set 'mossi'. Did you mean mosi\?"):
        find_data("mossi")
    with pytest.raises(ConfigError, match="unknown data set 'other'"):
        find_data("other")
    with pytest.raises(ConfigError, match="own is imported already: leave out --text-column words"):
        find_data("own", columns={"text": "words"})
    with pytest.raises(ConfigError, match="holds the data set own: use that name"):
        find_data("mosi", store.folder)
    with pytest.raises(ConfigError, match="imported with --label-range 1 5"):
        find_data("own", label_range=(0, 5))
    with pytest.raises(ConfigError, match="mosi is annotated on -3 3"):
        find_data("mosi", source, (-1, 1))
    with pytest.raises(ConfigError, match="letters, digits"):
        find_data("../own", source, (1, 5))
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_data("mosi", tmp_path / "nowhere")


def test_demo_is_packaged_and_its_splits_follow_the_rule() -> None:
    store = find_data("demo")
    assert store.info.splits == {"train": 2940, "valid": 420, "test": 840}
    assert store.info.label_range == (-4, 4)
    assert not store.info.notes
    source = Path(store_module.__file__).parent / "demo" / "utterances.csv"
    with source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    part_N = stratified([row["id"] for row in rows], np.array([float(row["label"]) for row in rows]), block=10)
    assert [row["split"] for row in rows] == [{0: "valid", 1: "test", 2: "test"}.get(part, "train") for part in part_N]
    assert rows[2]["text"].startswith("We were 17 deep last night & the love")
