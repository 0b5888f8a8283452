"""A run's places keep the same promises on a disk and in object storage."""

from __future__ import annotations

import itertools
import os
import stat
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grcf_ray.errors import ConfigError, DataError
from grcf_ray.storage import RemotePath, StoragePath, storage_path

NAMES = ["plain.json", "with space", "ünï-çødé 文", "a%20b+c=d&e#f?g", "x:y@z~'(1)'"]
ODD_JSON = {"text": "ünï 文", "list": [1, 2.5, None, True]}


def break_off(path: Path) -> None:
    """A write that does not come to its end."""
    path.write_bytes(b"part")
    raise KeyError


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    """A folder that does not exist yet."""
    if request.param == "local":
        return storage_path(tmp_path / "runs" / "one")
    return storage_path(request.getfixturevalue("s3")) / uuid.uuid4().hex / "one"


class TestContract:
    def test_nothing_is_there_at_first(self, place: StoragePath) -> None:
        assert not place.exists() and place.names() == []
        assert place.name == "one" and (place / "a").name == "a"
        assert place.at("a/b").uri == (place / "a" / "b").uri and place.at("").uri == place.uri

    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_written_is_read(self, place: StoragePath, name: str) -> None:
        (place / name).write_text("ünï\n")
        assert (place / name).exists() and place.exists() and place.names() == [name]
        assert (place / name).read_bytes() == "ünï\n".encode()
        with (place / name).reading() as path:
            assert path.read_text(encoding="utf-8") == "ünï\n"
        assert (place / "one").beside(name).uri == (place / name).uri
        assert (place / name).beside("one").uri == (place / "one").uri
        (place / name).delete()
        assert not (place / name).exists()
        # The URI opens the same place again.
        (place / name / "inner").write_text("")
        again = storage_path((place / name).uri)
        assert type(again) is type(place)
        assert (again / "inner").read_bytes() == b"" and again.name == name
        assert again.uri == (place / name).uri and str(again) == str(place / name)

    def test_missing_files_are_not_found(self, place: StoragePath) -> None:
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                (place / "none").read_bytes()
            with pytest.raises(FileNotFoundError):
                (place / "none").read_json()
            with pytest.raises(FileNotFoundError), (place / "none").reading():
                pass
            with pytest.raises(FileNotFoundError), (place / "none").reading_folder():
                pass
            # The same in a folder that exists.
            (place / "other").write_text("")

    def test_json_is_readable_and_whole(self, place: StoragePath) -> None:
        (place / "a.json").write_json(ODD_JSON)
        assert (place / "a.json").read_json() == ODD_JSON
        assert "ünï 文".encode() in (place / "a.json").read_bytes()
        with pytest.raises(ValueError, match="JSON"):
            (place / "a.json").write_json({"bad": float("nan")})
        assert (place / "a.json").read_json() == ODD_JSON
        (place / "b.json").write_text("{")
        with pytest.raises(DataError, match=r"b\.json is damaged"):
            (place / "b.json").read_json()

    def test_json_that_another_process_replaces_is_read_as_it_was_or_as_it_is(self, place: StoragePath) -> None:
        """It grows and shrinks: an object's size may be asked for before, and its content read after."""
        file, stop = place / "a.json", threading.Event()
        values = [["short"], list(range(200))]
        file.write_json(values[0])

        def write() -> None:
            for value in itertools.cycle(values):
                file.write_json(value)
                if stop.is_set():
                    return

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(write)
            try:
                assert all(file.read_json() in values for _ in range(50))
            finally:
                stop.set()
            writer.result()

    def test_many_jsons_come_in_the_order_asked_for(self, place: StoragePath) -> None:
        for number in range(40):
            (place / f"{number}.json").write_json(number)
        order = [f"{number}.json" for number in reversed(range(40))]
        assert place.read_jsons(order) == list(reversed(range(40)))
        assert place.read_jsons([]) == []
        with pytest.raises(FileNotFoundError):
            place.read_jsons(["1.json", "none.json"])

    def test_a_write_takes_place_at_its_end_and_as_a_whole(self, place: StoragePath) -> None:
        file = place / "file"
        with file.writing() as path:
            path.write_bytes(b"first")
            assert not file.exists() and place.names() == []
        with file.writing() as path:
            path.write_bytes(b"second")
            assert file.read_bytes() == b"first" and place.names() == ["file"]
        assert file.read_bytes() == b"second"

    def test_a_write_that_fails_changes_nothing(self, place: StoragePath) -> None:
        file = place / "file"
        with pytest.raises(KeyError), file.writing() as path:
            break_off(path)
        assert not file.exists() and place.names() == []
        file.write_text("old")
        with pytest.raises(KeyError), file.writing() as path:
            break_off(path)
        with pytest.raises(FileNotFoundError), file.writing():
            pass
        assert file.read_bytes() == b"old" and place.names() == ["file"]

    def test_files_of_several_parts(self, place: StoragePath) -> None:
        content = os.urandom(12 << 20)
        with (place / "large").writing() as path:
            path.write_bytes(content)
        assert (place / "large").read_bytes() == content
        with (place / "large").reading() as path:
            assert path.read_bytes() == content

    def test_names_are_of_files_and_folders(self, place: StoragePath) -> None:
        for path in ("b.json", "a.json", "c/inner/deep"):
            where = place
            for part in path.split("/"):
                where = where / part
            where.write_text("x")
        assert place.names() == ["a.json", "b.json", "c"]
        assert (place / "c").names() == ["inner"]

    def test_delete_takes_a_file_a_folder_and_nothing(self, place: StoragePath) -> None:
        for path in ("file", "file-2"):
            (place / path).write_text("x")
        (place / "folder" / "inner" / "a").write_text("x")
        (place / "folder" / "b").write_text("x")
        (place / "none").delete()
        (place / "none" / "deeper").delete()
        (place / "file").delete()
        assert place.names() == ["file-2", "folder"]
        (place / "folder").delete()
        assert place.names() == ["file-2"] and not (place / "folder").exists()
        (place / "folder").delete()

    def test_a_folder_is_written_and_read(self, place: StoragePath) -> None:
        """Its older files stay."""
        (place / "best" / "old").write_text("old")
        with (place / "best").writing_folder() as folder:
            (folder / "a b.json").write_text("1", encoding="utf-8")
            (folder / "inner").mkdir()
            (folder / "inner" / "c").write_text("2", encoding="utf-8")
        assert (place / "best").names() == ["a b.json", "inner", "old"]
        with (place / "best").reading_folder() as folder:
            assert (folder / "a b.json").read_text(encoding="utf-8") == "1"
            assert (folder / "inner" / "c").read_text(encoding="utf-8") == "2"

    def test_nothing_is_left_on_this_machine(
        self, place: StoragePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scratch = tmp_path / "tmp"
        scratch.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(scratch))
        (place / "a").write_text("x")
        with pytest.raises(KeyError), (place / "b").writing() as path:
            break_off(path)
        with (place / "a").reading(), place.reading_folder():
            pass
        with (place / "folder").writing_folder() as folder:
            (folder / "b").touch()
        assert list(scratch.iterdir()) == []

    def test_a_private_folder_can_be_made_again(self, place: StoragePath) -> None:
        place.make_private()
        (place / "a").write_text("x")
        place.make_private()
        assert place.names() == ["a"]


class TestLocal:
    def test_a_private_folder_is_its_owners(self, tmp_path: Path) -> None:
        place = storage_path(tmp_path / "runs" / "one")
        place.make_private()
        assert place.local is not None
        assert stat.S_IMODE(place.local.stat().st_mode) == 0o700
        assert stat.S_IMODE(place.local.parent.stat().st_mode) & 0o055

    @pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o007, 0o770), (0o077, 0o700)])
    def test_a_shared_folder_follows_the_mask(self, tmp_path: Path, mask: int, mode: int) -> None:
        place = storage_path(tmp_path / "runs" / "one")
        assert place.local is not None
        before = os.umask(mask)
        try:
            place.make_private()
            place.share()
        finally:
            os.umask(before)
        assert stat.S_IMODE(place.local.stat().st_mode) == mode
        assert list(place.local.iterdir()) == []

    @pytest.mark.parametrize("at", ["stage1", "stage1/trials", "stage1/trials/0007"])
    def test_what_lies_behind_a_link_is_neither_written_nor_deleted(self, at: str, tmp_path: Path) -> None:
        other = tmp_path / "other"
        target = other.joinpath(*"stage1/trials/0007/file".removeprefix(at).strip("/").split("/"))
        target.parent.mkdir(parents=True)
        target.write_text("kept")
        link = tmp_path / "run" / at
        link.parent.mkdir(parents=True)
        link.symlink_to(other)
        folder = storage_path(tmp_path / "run") / "stage1" / "trials" / "0007"
        for act in (
            lambda: (folder / "file").write_text("new"),
            lambda: (folder / "file").delete(),
            folder.delete,
            folder.make_private,
            lambda: folder.writing_folder().__enter__(),
        ):
            with pytest.raises(DataError, match="is a link") as refused:
                act()
            assert str(link) in str(refused.value)
        assert [path.read_text() for path in other.rglob("*") if path.is_file()] == ["kept"]

    def test_a_link_in_a_files_place_is_refused_and_the_folder_itself_may_be_one(self, tmp_path: Path) -> None:
        (tmp_path / "kept").write_text("kept")
        (tmp_path / "disk").mkdir()
        (tmp_path / "run").symlink_to(tmp_path / "disk")
        place = storage_path(tmp_path / "run")
        (place / "a" / "b").write_text("x")
        place.check_links()
        link = tmp_path / "disk" / "a" / "c"
        link.symlink_to(tmp_path / "kept")
        for act in ((place / "a" / "c").delete, lambda: (place / "a" / "c").write_text("new"), place.check_links):
            with pytest.raises(DataError, match="a/c is a link"):
                act()
        assert (tmp_path / "kept").read_text() == "kept" and link.is_symlink()
        with pytest.raises(DataError, match="run is a link"):
            (storage_path(tmp_path) / "run" / "x").write_text("x")
        (storage_path(tmp_path) / "run").rooted().beside("run").make_private()

    def test_a_folder_that_is_moved_while_it_is_written_is_not_made_anew(self, tmp_path: Path) -> None:
        place = storage_path(tmp_path / "run")
        (place / "a" / "b").write_text("x")
        (tmp_path / "run").rename(tmp_path / "moved")
        for act in (lambda: (place / "a" / "b").write_text("y"), (place / "a" / "b").read_bytes, place.make_private):
            with pytest.raises(DataError, match="moved or deleted"):
                act()
        assert [path.name for path in tmp_path.iterdir()] == ["moved"]

    def test_another_kind_of_file_is_said(self, tmp_path: Path) -> None:
        place = storage_path(tmp_path)
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("x")
        (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
        for act, said in (
            ((place / "folder").read_json, "needs a file"),
            (lambda: (place / "folder").write_text("x"), "needs a file"),
            ((place / "file").names, "needs a folder"),
            ((place / "file" / "x").read_json, "needs a folder"),
            (lambda: (place / "file" / "x").write_text("x"), "needs a folder"),
            ((place / "nowhere").read_json, "does not exist"),
            ((place / "nowhere").names, "does not exist"),
        ):
            with pytest.raises(DataError, match=said):
                act()

    @pytest.mark.parametrize("content", ["[" * 100_000, '{"a": NaN}', "", "\udcff"])
    def test_what_is_no_json_is_said(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(DataError, match="not JSON"):
            (storage_path(tmp_path) / "a.json").read_json()

    def test_paths_are_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/someone")
        assert str(storage_path("runs")) == storage_path(Path("runs")).uri == str(tmp_path / "runs")
        assert str(storage_path("~/runs")) == "/home/someone/runs"
        assert str(storage_path("file:///data/my%20runs")) == "/data/my runs"
        for uri in ("file://host/runs", "file://runs", "file://"):
            with pytest.raises(ConfigError, match="file:///FOLDER"):
                storage_path(uri)


class TestUris:
    @pytest.mark.parametrize("uri", ["abc://bucket/runs", "s3://bucket/runs?nonsense=1", "s3://", "s3:///runs"])
    def test_a_uri_that_nothing_answers_to_is_refused(self, uri: str) -> None:
        with pytest.raises(ConfigError, match=r"s3://bucket/runs"):
            storage_path(uri)

    @pytest.mark.parametrize(
        "uri",
        [
            "s3://me:hidden@bucket/runs",
            "s3://me:hid/hidden@bucket/runs",
            "s3://me:hidden@bucket/runs?scheme=http",
            "abfs://:hidden@account/container",
            "s3://me:hid?hidden@bucket/runs",
            "s3://bucket/runs?region=eu-west-1&secret_key=hidden",
            "s3://bucket/runs?scheme=http&endpoint_override=user:hidden@host:9000",
            "s3://bucket/runs?endpoint_override=http%3A%2F%2Fuser%3Ahidden%40host",
            "abfs://container@account.dfs.core.windows.net/runs?sv=1&sig=hidden",
            "abfs://container@account.dfs.core.windows.net/runs?client_secret=hidden",
        ],
    )
    def test_keys_in_a_uri_are_refused_and_not_said(self, uri: str) -> None:
        with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as refused:
            storage_path(uri)
        assert "hidden" not in str(refused.value)

    @pytest.mark.parametrize(
        ("uri", "child"),
        [
            ("s3://bucket/runs/?region=eu-west-1", "s3://bucket/runs/a?region=eu-west-1"),
            ("s3://bucket?region=eu-west-1", "s3://bucket/a?region=eu-west-1"),
            ("s3://bucket/my runs?region=eu-west-1", "s3://bucket/my%20runs/a?region=eu-west-1"),
            ("s3://bucket/my%20runs?region=eu-west-1", "s3://bucket/my%20runs/a?region=eu-west-1"),
            ("gs://anonymous@bucket/runs", "gs://anonymous@bucket/runs/a"),
            (
                "abfs://container@account.dfs.core.windows.net/runs",
                "abfs://container@account.dfs.core.windows.net/runs/a",
            ),
        ],
    )
    def test_the_query_goes_with_a_place_and_is_not_shown(self, uri: str, child: str) -> None:
        place = storage_path(uri) / "a"
        assert isinstance(place, RemotePath)
        assert place.uri == child == storage_path(child).uri
        assert str(place) == child.partition("?")[0] and repr(place) == f"RemotePath({str(place)!r})"
        assert place.local is None

    def test_a_server_that_does_not_answer_is_said_within_seconds(self) -> None:
        began = time.monotonic()
        with pytest.raises(ConfigError, match=r"s3://bucket/runs\?.* cannot be reached \(.*NETWORK_CONNECTION"):
            storage_path("s3://bucket/runs?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1", check=True)
        assert time.monotonic() - began < 60

    @pytest.mark.s3
    def test_the_servers_address_may_come_from_the_environment(self, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
        host = s3.partition("endpoint_override=")[2].partition("&")[0]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}")
        (storage_path("s3://bucket/from-environment", check=True) / "a").write_text("x")
        assert (storage_path(s3) / "from-environment" / "a").read_bytes() == b"x"

    @pytest.mark.s3
    def test_a_bucket_that_does_not_exist_is_not_made(self, s3: str) -> None:
        place = storage_path(s3.replace("//bucket", "//nobodys"))
        assert not place.exists()
        with pytest.raises(OSError, match="NO_SUCH_BUCKET"):
            (place / "a").write_text("x")
