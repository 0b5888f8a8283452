from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from grcf_ray import console
from grcf_ray.errors import ClusterError, ConfigError, DataError, GrcfError, NoWinnerError


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
    assert "\x1b" not in "".join(lines)


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
    ("count", "words"),
    [(0, "0.0 MB"), (1_549_000, "1.5 MB"), (999e6, "999.0 MB"), (1e9, "1.0 GB"), (2.345e12, "2345.0 GB")],
)
def test_sizes_are_as_people_read_them(count: float, words: str) -> None:
    assert console.size(count) == words
