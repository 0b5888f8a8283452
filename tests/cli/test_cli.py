"""`grcf COMMAND` and `python -m grcf_ray.COMMAND` are the same command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from grcf_ray import cli, console
from grcf_ray.cli import COMMANDS, main


def exit_code(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["/bin/grcf", *words])
    # Under `python -m pytest`, usage lines would name pytest.
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


HEAVY = {"torch", "ray", "transformers", "pyarrow", "numpy", "optuna", "sklearn", "scipy", "tensorboard", "plotly"}


@pytest.mark.parametrize("command", COMMANDS)
def test_both_spellings_have_the_same_help_and_import_nothing_heavy(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, command, "--help") == 0
    usage, help_ = capsys.readouterr().out.split("\n", 1)
    assert usage.startswith(f"Usage: grcf {command} ")
    module = [sys.executable, "-X", "importtime", "-m", f"grcf_ray.{command}", "--help"]
    other = subprocess.run(module, capture_output=True, text=True, check=True)
    assert other.stdout.startswith(f"Usage: python -m grcf_ray.{command} ")
    assert other.stdout.split("\n", 1)[1] == help_
    assert "Examples:" in help_ or "Commands:" in help_
    assert "\x1b" not in help_
    assert not HEAVY & {line.rpartition("|")[2].strip() for line in other.stderr.splitlines()}


def test_the_overview_names_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(monkeypatch, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    listed = lines[lines.index("Commands:") + 1 :]
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert not [line for line in listed if line.endswith("...")], "a summary is cut"


def test_an_unknown_command_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, "serach") == 2
    assert "'search'" in capsys.readouterr().err


def test_options_may_come_before_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sees its own arguments alone, as records and messages repeat them."""
    seen: list[list[str]] = []

    def run(app: object) -> None:
        seen.append(sys.argv)
        sys.exit(0)

    monkeypatch.setattr(console, "run", run)
    assert exit_code(monkeypatch, "--debug", "runs", "list") == 0
    assert seen == [["/bin/grcf runs", "--debug", "list"]]


def test_one_command_does_not_import_the_others() -> None:
    code = (
        "import sys; from grcf_ray.cli import main; sys.argv = ['grcf', 'runs', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.startswith('grcf_ray.cli.')))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "['grcf_ray.cli.options', 'grcf_ray.cli.runs']"


def test_the_commands_are_the_modules() -> None:
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert modules == {*COMMANDS, "__init__", "options", "overview"}
