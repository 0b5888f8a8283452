from __future__ import annotations

import ast
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from grcf_ray import __version__, console
from grcf_ray.cli import COMMANDS
from grcf_ray.errors import ClusterError, ConfigError, DataError, GrcfError, NoWinnerError
from grcf_ray.files import scratch_folder


def app_that(error: BaseException | None) -> typer.Typer:
    app = console.make_app("A test.")

    @app.command()
    def main(times: int = 1) -> None:
        print("answer", times)
        if error is not None:
            raise error

    return app


def exit_code(app: typer.Typer, *words: str) -> object:
    with pytest.raises(SystemExit) as caught:
        console.run(app, words)
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (GrcfError("why"), 1),
        (ConfigError("why"), 2),
        (DataError("why"), 3),
        (NoWinnerError("why"), 4),
        (ClusterError("why"), 5),
        (KeyboardInterrupt(), 130),
        (typer.Exit(7), 7),
    ],
)
def test_each_error_has_its_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException | None, code: int
) -> None:
    assert exit_code(app_that(error), "--times", "2") == code
    out, err = capsys.readouterr()
    assert out == "answer 2\n"
    assert err == ("error: why\n" if isinstance(error, GrcfError) else "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    app = importlib.import_module(f"grcf_ray.cli.{command}").app
    assert exit_code(app, "--version") == 0
    assert capsys.readouterr().out == f"grcf_ray {__version__}\n"


def test_unexpected_error_is_internal_and_hints_at_debug(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(app_that(ValueError("odd"))) == 1
    err = capsys.readouterr().err
    assert err.startswith("internal error: ValueError: odd\n")
    assert "--debug" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ValueError("odd"), DataError("odd")])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_traceback_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, by: str
) -> None:
    if by == "environment":
        monkeypatch.setenv("GRCF_DEBUG", "1")
    code = exit_code(app_that(error), *(["--debug"] if by == "argument" else []))
    err = capsys.readouterr().err
    assert code == getattr(error, "exit_code", 1)
    assert "Traceback (most recent call last)" in err
    assert f"error: {'' if isinstance(error, DataError) else 'ValueError: '}odd" in err


@pytest.mark.parametrize("words", [["--tmies", "2"], ["--times", "two"], ["extra"]])
def test_usage_error_is_2_without_traceback(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert exit_code(app_that(None), *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: " in err
    assert "Traceback" not in err


def test_table_is_plain_off_a_terminal_and_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_table(["name", "count", "mean"], [("a[b]", 12, 0.5), ("x" * 300, 3, "-")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["a[b]", "12", "0.500"]
    assert lines[2].split() == ["x" * 300, "3", "-"]
    assert lines[0].startswith("name")


def test_closed_pipe_is_no_internal_error() -> None:
    code = (
        "from grcf_ray import console\napp = console.make_app('x')\n@app.command()\n"
        "def main() -> None:\n    for _ in range(100000): print('line')\nconsole.run(app)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    process.wait()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (42.4, "42 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (3540, "59 min"), (11100, "3 h 05 min")],
)
def test_durations_are_as_people_read_them(seconds: float, words: str) -> None:
    assert console.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0.0 MB"), (1_549_000, "1.5 MB"), (999e6, "999.0 MB"), (1e9, "1.0 GB"), (2.345e12, "2345.0 GB")],
)
def test_sizes_are_as_people_read_them(count: float, words: str) -> None:
    assert console.size(count) == words


HOSTILE = "\x1b[2J\x07\r\x7f\x9b31m\u202eevil\u2066\u2028\t\udc80"


@pytest.mark.parametrize(
    "written",
    [
        lambda: console.progress(HOSTILE),
        lambda: console.say(HOSTILE),
        lambda: console.print_table([HOSTILE], [(HOSTILE,)]),
        lambda: exit_code(app_that(DataError(HOSTILE))),
        lambda: exit_code(app_that(ValueError(HOSTILE)), "--debug"),
        lambda: console.print_json({HOSTILE: HOSTILE}),
    ],
)
def test_no_text_commands_the_terminal(capsys: pytest.CaptureFixture[str], written: Callable[[], None]) -> None:
    written()
    out = "".join(capsys.readouterr())
    assert "evil" in out
    assert all(line.isprintable() for line in out.split("\n"))


def test_lines_and_letters_of_any_script_stay(capsys: pytest.CaptureFixture[str]) -> None:
    text = "two\nlines, Zürich, 电影, עברית, 👩\u200d👧"
    console.say(text)
    assert capsys.readouterr().out == text + "\n"
    assert console.printable("a\x1bb\u202ec") == "a\\x1bb\\u202ec"


def test_text_leaves_for_the_terminal_through_the_console() -> None:
    package = Path(console.__file__).parent
    for path in set(package.rglob("*.py")) - {package / "console.py"}:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"], path


def test_letters_that_the_terminal_lacks_end_no_command() -> None:
    code = (
        "from grcf_ray import console\napp = console.make_app('x')\n@app.command()\n"
        "def main() -> None:\n    console.say('\\u2588\\u2591 1 \\xb1 2 \\xe9')\n"
        "    console.progress('\\u2581\\xe9')\nconsole.run(app)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"#. 1 +- 2 \\xe9\n", b"_\\xe9\n")


def test_a_termination_leaves_no_temporary_files() -> None:
    app, folders = console.make_app("A test."), []

    @app.command()
    def main() -> None:
        with scratch_folder("grcf-test-") as folder:
            folders.append(folder)
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(app) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert [folder.exists() for folder in folders] == [False]


CHATTY = """
import os, sys
from grcf_ray import console

app = console.make_app("A test.")

@app.command()
def main(number: int = 0) -> None:
    console.progress("begin")
    if "gone" in sys.argv[-1]:
        # The reader leaves now.
        os.write(int(os.environ["TOLD"]), b"x")
        os.read(int(os.environ["GO"]), 1)
    # A file that takes the place of a closed stream would get its words.
    with open(os.environ["FILE"], "w") as file:
        for _ in range(3):
            console.progress("line")
            print("answer")
        file.write("own")
    raise SystemExit(3)

console.run(app, ["--number", "1"])
"""


@pytest.mark.parametrize("closing", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start_change_nothing(tmp_path: Path, closing: str) -> None:
    out, err, file = (tmp_path / name for name in ("out", "err", "file"))
    command = f'"$0" -c "$1" > "{out}" 2> "{err}" {closing}'
    environment = {**os.environ, "FILE": str(file)}
    assert subprocess.run(["sh", "-c", command, sys.executable, CHATTY], env=environment).returncode == 3
    assert file.read_text() == "own"
    assert out.read_text() == ("answer\n" * 3 if closing == "2>&-" else "")
    assert err.read_text() == ("begin\n" + "line\n" * 3 if closing == ">&-" else "")


def test_readers_that_leave_change_nothing(tmp_path: Path) -> None:
    """As `head` does, of both streams."""
    told, tell = os.pipe()
    wait, go = os.pipe()
    environment = {**os.environ, "FILE": str(tmp_path / "file"), "TOLD": str(tell), "GO": str(wait)}
    argv = [sys.executable, "-c", CHATTY, "gone"]
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=(tell, wait)
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert os.read(told, 1) == b"x"
        process.stdout.close()
        process.stderr.close()
        os.write(go, b"x")
        assert process.wait(60) == 3
    assert (tmp_path / "file").read_text() == "own"
    for descriptor in (told, tell, wait, go):
        os.close(descriptor)


def test_an_answer_that_a_full_disk_swallows_is_an_error(tmp_path: Path) -> None:
    """Nobody asked for that; progress alone may be lost."""
    environment = {**os.environ, "FILE": str(tmp_path / "file")}
    for stream, code in (("2", 3), ("1", 1)):
        command = f'"$0" -c "$1" {stream}> /dev/full'
        ran = subprocess.run(["sh", "-c", command, sys.executable, CHATTY], env=environment, capture_output=True)
        assert ran.returncode == code


def test_numbers_and_missing_ones_align_right() -> None:
    rows = [("a", "1,234", "3 h 05 min", "-"), ("bc", "-", "-", "3, 4")]
    assert console.table_lines(("n", "parameters", "cost", "trials"), rows) == [
        "n   parameters        cost  trials",
        "a        1,234  3 h 05 min  -",
        "bc           -           -  3, 4",
    ]


def test_progress_is_told_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(console.time, "strftime", lambda form: "12:34:56")
    progress = console.Progress("rows", 100)
    for steps in (10, 20, 10, 60):
        now[0] += 4
        progress.add(steps)
    assert capsys.readouterr().err == "12:34:56  rows 30/100  ETA 19 s\n"
    hashing = console.Progress("hashing a.bin", 4_000_000_000, show=console.size)
    now[0] += 6
    hashing.reach(1_000_000_000)
    assert capsys.readouterr().err == "12:34:56  hashing a.bin 1.0 GB/4.0 GB  ETA 18 s\n"
