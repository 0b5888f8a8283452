"""Input and output of all commands: exit codes, progress on standard error, answers on standard output."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import typer

from grcf_ray._version import __version__
from grcf_ray.errors import GrcfError

_NUMBER = re.compile(r"-|nan|inf|[+-]?[\d.,]+(e[+-]?\d+)?( ?%| s| min)?|\d+ h \d\d min")
_CODES = re.compile(
    # C0 without the line feed, DEL and C1; line separators and direction overrides; surrogates.
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_ASCII = dict(zip("▁▂▃▄▅▆▇█░•─│└–×“”‘’", "_.:-=+*#.o-|+-x\"\"''", strict=True)) | {"±": "+-", "…": "..."}
"""ASCII replacements of the characters in charts and sentences, for terminals without Unicode."""
_ERRORS = "grcf_ray"
"""Name under which `_encodable` is registered as a handler of encoding errors."""

_GONE = frozenset({errno.EPIPE, errno.EBADF, errno.EIO, errno.ENXIO})
"""Errors of a stream whose reader or terminal is gone."""
_QUIET_S = 5.0
"""Seconds between two lines of progress."""


def make_app(help: str) -> typer.Typer:
    """Return a command line with plain help, no completion scripts, and errors left to `run`."""
    return typer.Typer(
        help=help,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def run(app: typer.Typer, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit. Only here an exception becomes a message and an exit code.

    `--debug`, anywhere among the arguments, or GRCF_DEBUG=1 adds the traceback. `--version` prints the version only.
    """
    codecs.register_error(_ERRORS, _encodable)
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot encode must not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--version" in argv:
        say(f"grcf_ray {__version__}")
        sys.exit(0)
    debug = "--debug" in argv or os.environ.get("GRCF_DEBUG") == "1"
    with _lasting_streams():
        _run(app, argv, debug)


def _run(app: typer.Typer, argv: Sequence[str], debug: bool) -> NoReturn:
    try:
        try:
            with _terminated_as_interrupted():
                app([word for word in argv if word != "--debug"])
        finally:
            # A failure to write the answer is an error like any other.
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            progress(traceback.format_exc().rstrip())
        if isinstance(error, GrcfError):
            progress(f"error: {error}")
            sys.exit(error.exit_code)
        progress(f"internal error: {type(error).__name__}: {error}")
        if not debug:
            progress("This is a bug in grcf_ray. Run the command again with --debug for the traceback.")
        sys.exit(1)
    sys.exit(0)


def printable(text: str) -> str:
    """Return a text with control codes replaced by escapes such as `\\x1b`; line feeds stay.

    Data, file names and errors of other programs reach the terminal only through this function.
    """
    return _CODES.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def spaced(text: str) -> str:
    """Return a text with a space in place of every character that is not printable, line feeds too."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _encodable(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that the terminal cannot encode by similar ASCII, or by their escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    escaped = (_ASCII.get(letter) or letter.encode("unicode_escape").decode() for letter in letters)
    return "".join(escaped), error.end


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM like an interrupt until the context ends, so that contexts remove their temporary files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _lasting_streams() -> Iterator[None]:
    """Allow standard output and error to be closed, now or later, until the context ends."""
    # Otherwise the next opened file would get the number of a closed stream, and receive its output.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as devnull:
        sys.stdout = cast(TextIO, _LastingStream(sys.stdout or devnull, _GONE))
        sys.stderr = cast(TextIO, _LastingStream(sys.stderr or devnull, None))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


class _LastingStream:
    """A stream that continues without errors after its reader, such as `head`, has exited.

    faults: error numbers to ignore; None ignores all, for streams without an answer.
    """

    def __init__(self, stream: TextIO, faults: frozenset[int] | None) -> None:
        self._stream, self._faults = stream, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text and return its length."""
        with self._surviving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with self._surviving():
            self._stream.flush()

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                if self._faults is not None and error.errno not in self._faults:
                    raise
            elif not self._stream.closed:
                raise
            # Python would write the rest of the buffer again, at the latest when the process ends.
            if isinstance(error, OSError) and error.errno in _GONE:
                with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as devnull:
                    os.dup2(devnull.fileno(), self._stream.fileno())


def progress(line: str) -> None:
    """Print a line on standard error; standard output is kept for the answer."""
    # In one write: a signal between the text and its line feed would put another message on the same line.
    print(f"{printable(line)}\n", end="", file=sys.stderr, flush=True)


class Progress:
    """Progress of work that takes more than a few seconds, with the remaining time, on standard error.

    task: a noun phrase for the work. total: number of steps. show: makes a text of a number of steps.
    """

    def __init__(self, task: str, total: int, *, show: Callable[[int], str] = str) -> None:
        self._task, self._total, self._show, self._done = task, total, show, 0
        self._start = self._said = time.monotonic()

    def add(self, steps: int) -> None:
        """Count finished steps; print a line if enough time has passed."""
        self.reach(self._done + steps)

    def reach(self, done: int) -> None:
        """Set the number of finished steps, above 0; print a line if enough time has passed."""
        self._done = done
        now = time.monotonic()
        if now - self._said < _QUIET_S or self._done >= self._total:
            return
        self._said = now
        left = (now - self._start) / self._done * (self._total - self._done)
        count = f"{self._show(self._done)}/{self._show(self._total)}"
        progress(f"{time.strftime('%H:%M:%S')}  {self._task} {count}  ETA {duration(max(1.0, left))}")


def duration(seconds: float) -> str:
    """Return seconds in words: 42 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def say(text: str = "") -> None:
    """Print one or more lines of the answer on standard output."""
    print(printable(text))


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print an answer as JSON in ASCII on standard output. ValueError for NaN, which JSON lacks."""
    import json

    print(json.dumps(value, indent=indent, allow_nan=False))


def sentence(note: str) -> str:
    """Return a note as a sentence: with a capital and a full stop."""
    return f"{note[:1].upper()}{note[1:]}."


def size(count: float) -> str:
    """Return a number of bytes in words: `1.5 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on standard output, as wide as the terminal, or uncut if there is none. Numbers align right."""
    say("\n".join(table_lines(header, rows)))


def width() -> int:
    """Return the number of columns of the terminal; 80 if standard output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 80


def table_lines(header: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None) -> list[str]:
    """Return the lines of a table, one per row if they fit.

    width: number of columns to fit into [default: the terminal's].
    """
    from rich.console import Console
    from rich.table import Table

    cells = [[f"{cell:.3f}" if isinstance(cell, float) else _in_line(str(cell)) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False)
    for column, name in enumerate(header):
        numeric = all(_NUMBER.fullmatch(row[column]) for row in cells)
        table.add_column(_in_line(name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    console = Console(markup=False, highlight=False, emoji=False, width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def _in_line(text: str) -> str:
    return printable(text).replace("\n", " ")
