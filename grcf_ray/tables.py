"""Tables of results: for the terminal, Markdown, LaTeX and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grcf_ray.console import print_table, say, sentence

P_VALUE = "p"
"""Format of a p-value: three decimals, `<0.001` for smaller values."""


@dataclass(frozen=True)
class Column:
    """A column: key of its cells, heading, and number format."""

    key: str
    title: str
    format: str = "{}"


@dataclass(frozen=True)
class Table:
    """A table of results, with notes below it."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()

    def cells(self) -> list[tuple[str, ...]]:
        """Return the rows as text, with `-` for missing cells."""
        return [tuple(_cell(row.get(column.key), column.format) for column in self.columns) for row in self.rows]

    def markdown(self) -> str:
        """Return title, table and notes as Markdown."""
        alignment = ["---", *["---:"] * (len(self.columns) - 1)]
        rows = [tuple(column.title for column in self.columns), alignment, *self.cells()]
        lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        notes = ["", *(f"- {sentence(note)}" for note in self.notes)] if self.notes else []
        return "\n".join([f"## {self.title}", "", *lines, *notes])

    def as_dict(self) -> dict[str, Any]:
        """Return the table for JSON, with unrounded numbers."""
        return asdict(self)

    def latex(self) -> str:
        """Return the table in LaTeX, for the package booktabs, with the notes as comments."""
        rows = [tuple(column.title for column in self.columns), *self.cells()]
        first, *others = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in rows]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_latex(self.title)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                r"\toprule",
                first,
                r"\midrule",
                *others,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                *(f"% {line}" for note in self.notes for line in note.splitlines()),
            ]
        )

    def print(self) -> None:
        """Print title, table and notes on standard output."""
        say(f"\n{self.title}\n")
        print_table([column.title for column in self.columns], self.cells())
        for note in self.notes:
            say(sentence(note))


def fact_text(value: Any) -> str:
    """Return a fact about tables as text; several facts by name, such as versions, on one line."""
    return ", ".join(f"{name} {fact}" for name, fact in value.items()) if isinstance(value, Mapping) else str(value)


def _cell(value: Any, format: str) -> str:
    if value is None:
        return "-"
    if format == P_VALUE:
        return "<0.001" if value < 0.0005 else f"{value:.3f}"
    return format.format(value)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "σ": r"$\sigma$",
    "λ": r"$\lambda$",
    "²": "$^2$",
}
_LATEX |= {letter: "\\" + letter for letter in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
