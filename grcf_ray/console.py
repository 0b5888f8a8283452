"""What the commands share: an error's exit code, progress on standard error, tables on standard output."""

from __future__ import annotations

import os
import re
import shutil
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer

from grcf_ray.errors import GrcfError

_NUMBER = re.compile(r"-|nan|inf|[+-]?[\d.]+(e[+-]?\d+)?( ?%)?")

__all__ = ["make_app", "print_table", "progress", "run", "sentence", "size", "table_lines", "width"]


def make_app(help: str) -> typer.Typer:
    """A command line in the project's manner: plain help, no completion scripts, errors left to `run`."""
    return typer.Typer(
        help=help,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def run(app: typer.Typer, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit: the one place where an exception becomes a message and an exit code.

    `--debug`, anywhere among the arguments, or GRCF_DEBUG=1 adds the traceback.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("GRCF_DEBUG") == "1"
    try:
        app([word for word in argv if word != "--debug"])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, GrcfError):
            progress(f"error: {error}")
            sys.exit(error.exit_code)
        progress(f"internal error: {type(error).__name__}: {error}")
        if not debug:
            progress("This is a fault of grcf_ray. Run the command again with --debug for the traceback.")
        sys.exit(1)
    sys.exit(0)


def progress(line: str) -> None:
    """A line on standard error; standard output is kept for the answer."""
    print(line, file=sys.stderr, flush=True)


def sentence(note: str) -> str:
    """A note as it is said by itself: with a capital and a full stop."""
    return f"{note[:1].upper()}{note[1:]}."


def size(count: float) -> str:
    """So many bytes, as people read them: `1.5 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output, numbers to the right; off a terminal it is neither coloured nor cut."""
    print("\n".join(table_lines(header, rows)))


def width() -> int:
    """Columns of the terminal that standard output is; 80 where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 80


def table_lines(header: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None) -> list[str]:
    """A table's lines. width: columns that it has to fit; then, as off a terminal, it is not coloured."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, name in enumerate(header):
        numeric = all(_NUMBER.fullmatch(str(row[column])) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    terminal = width is None and sys.stdout.isatty()
    console = Console(
        markup=False,
        highlight=False,
        emoji=False,
        width=None if terminal else width or 1000,
        color_system="auto" if terminal else None,
    )
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]
