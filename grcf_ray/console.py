"""What the commands share: an error's exit code, progress on standard error, tables on standard output."""

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import typer

from grcf_ray._version import __version__
from grcf_ray.errors import GrcfError

_NUMBER = re.compile(r"-|nan|inf|[+-]?[\d.]+(e[+-]?\d+)?( ?%| s| min)?")
_CODES = re.compile(
    # C0 without the line feed, DEL and C1; separators of lines and overrides of direction; halves of letters.
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_ASCII = dict(zip("▁▂▃▄▅▆▇█░•─│└–×“”‘’", "_.:-=+*#.o-|+-x\"\"''", strict=True)) | {"±": "+-", "…": "..."}
"""What charts and sentences have, for terminals that have ASCII alone."""
_ERRORS = "grcf_ray"
"""The name of `_encodable` among Python's handlers of encoding errors."""

_GONE = frozenset({errno.EPIPE, errno.EBADF, errno.EIO, errno.ENXIO})
"""What a stream says whose reader, or terminal, is gone."""
_QUIET_S = 5.0
"""Between two lines of progress."""


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

    `--debug`, anywhere among the arguments, or GRCF_DEBUG=1 adds the traceback; `--version` prints the version alone.
    """
    codecs.register_error(_ERRORS, _encodable)
    for stream in (sys.stdout, sys.stderr):
        # A letter that the terminal's encoding lacks must not end a command.
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
            # An answer that cannot be written is an error like any other.
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
            progress("This is a fault of grcf_ray. Run the command again with --debug for the traceback.")
        sys.exit(1)
    sys.exit(0)


def printable(text: str) -> str:
    """The text with escapes, such as `\\x1b`, for codes that would command a terminal; line feeds stay.

    Data, names of files and errors of other programs reach the terminal through this alone.
    """
    return _CODES.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _encodable(error: UnicodeError) -> tuple[str, int]:
    """In the place of letters that the terminal's encoding lacks: ASCII that looks like them, or their escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    escaped = (_ASCII.get(letter) or letter.encode("unicode_escape").decode() for letter in letters)
    return "".join(escaped), error.end


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A termination leaves the contexts that it meets, as an interrupt does: temporary files go with them."""
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
    """While the context lasts, standard output and error may be closed, then or before: what they lack is readers."""
    # Otherwise the next file that is opened would take the place of a closed stream, and get what is meant for it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nobody:
        sys.stdout = cast(TextIO, _LastingStream(sys.stdout or nobody, _GONE))
        sys.stderr = cast(TextIO, _LastingStream(sys.stderr or nobody, None))
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


class _LastingStream:
    """A stream that outlives its reader, such as `head`: nobody is there for what follows, and that is no error.

    faults: numbers of the errors that are passed over; None is all, for what nobody's answer depends on.
    """

    def __init__(self, stream: TextIO, faults: frozenset[int] | None) -> None:
        self._stream, self._faults = stream, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """The characters written."""
        with self._surviving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As of any stream."""
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
            # What is left in its buffer would be written again, at the latest when the process ends.
            if isinstance(error, OSError) and error.errno in _GONE:
                with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nobody:
                    os.dup2(nobody.fileno(), self._stream.fileno())


def progress(line: str) -> None:
    """A line on standard error; standard output is kept for the answer."""
    print(printable(line), file=sys.stderr, flush=True)


class Progress:
    """Lines on standard error with what is left, for what takes longer than a few seconds.

    what: the work as a noun phrase. total: its steps, of any kind.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._start = self._said = time.monotonic()

    def add(self, steps: int) -> None:
        """So many more steps are done."""
        self._done += steps
        now = time.monotonic()
        if now - self._said < _QUIET_S or self._done >= self._total:
            return
        self._said = now
        left = (now - self._start) / self._done * (self._total - self._done)
        progress(
            f"{time.strftime('%H:%M:%S')}  {self._what} {self._done}/{self._total}  ETA {duration(max(1.0, left))}"
        )


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def say(text: str = "") -> None:
    """A line, or several, of the answer, on standard output."""
    print(printable(text))


def print_json(value: object, *, indent: int | None = 2) -> None:
    """An answer as JSON on standard output, in ASCII. ValueError for NaN, which JSON lacks."""
    import json

    print(json.dumps(value, indent=indent, allow_nan=False))


def sentence(note: str) -> str:
    """A note as it is said by itself: with a capital and a full stop."""
    return f"{note[:1].upper()}{note[1:]}."


def size(count: float) -> str:
    """So many bytes, as people read them: `1.5 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output, numbers to the right; it is as wide as a terminal, and off one it is not cut."""
    say("\n".join(table_lines(header, rows)))


def width() -> int:
    """Columns of the terminal that standard output is; 80 where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 80


def table_lines(header: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None) -> list[str]:
    """A table's lines, a row a line where it fits. width: columns that it has to fit."""
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
