"""The documentation: links lead somewhere, commands parse, and generated tables are current."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from grcf_ray.cli import COMMANDS
from grcf_ray.config import RunConfig, flatten, reads

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "clusters/README.md", *ROOT.glob("docs/**/*.md")])
_PROGRAM = re.compile(r"(?:python -m grcf_ray\.|grcf )(\w+)")


def blocks(page: Path, kind: str) -> list[str]:
    """Return the code blocks of a page whose fence ends in `kind`."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Return the words after `python -m grcf_ray.` or `grcf` of every command in the shell blocks of a page."""
    shown = []
    for block in blocks(page, "sh(?: run)?"):
        for line in block.replace("\\\n", " ").splitlines():
            if program := _PROGRAM.search(line):
                words = shlex.split(line[program.end() :], comments=True)
                end = next((k for k, word in enumerate(words) if word in ("|", "&&", ";", ">")), len(words))
                shown.append([program[1], *words[:end]])
    return shown


def parse(command: list[str]) -> None:
    """Parse a command's options and arguments as the command line does, without running it."""
    name, *words = command
    parser: Any = typer.main.get_command(import_module(f"grcf_ray.cli.{name}").app)
    while hasattr(parser, "commands"):
        subcommand, *words = words
        parser = parser.commands[subcommand]
    parser.make_context(name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path) -> None:
    for command in commands(page):
        if "--version" not in command:
            # A wrong option or value ends in click's UsageError, which names it.
            parse([word for word in command if word != "--debug"])


@pytest.mark.parametrize(
    "command", [["search", "--datset", "mosi"], ["runs", "watch"], ["data", "import", "a", "--task", "x"]]
)
def test_commands_that_are_wrong_do_not_parse(command: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such option|missing|is not one of"):
        parse(command)


def test_pages_show_every_command() -> None:
    assert {command[0] for page in PAGES for command in commands(page)} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_runnable_blocks_run(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "sh run"):
        script = block.replace("python -m", f"{shlex.quote(sys.executable)} -m")
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, check=True, capture_output=True)


def test_every_setting_is_described() -> None:
    """If this fails, run `python docs/settings.py`."""
    page = runpy.run_path(str(ROOT / "docs/settings.py"))
    assert page["page"]() == (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    settings = {setting.path: setting for setting in page["described_settings"]()}
    assert {path: setting.default for path, setting in settings.items()} == flatten(RunConfig())
    for path, setting in settings.items():
        assert setting.meaning.endswith(".")
        assert ("Regression only." in setting.meaning, "Classification only." in setting.meaning) == (
            not reads("classification", path),
            not reads("regression", path),
        )
    for path, words in {
        "seed": "integer >= 0",
        "model.fusion_dropout": "number >= 0 and < 1",
        "model.frozen_layers": 'integer >= 0 or "all"',
        "ranking.intra_margin": "number > 0",
        "stage2.top_layers": "integer >= 0 or null",
        "stage2.start": 'one of "best", "last"',
        "search.pruning": "true or false",
    }.items():
        assert settings[path].type == words


def test_the_readme_fits_a_few_screens() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
