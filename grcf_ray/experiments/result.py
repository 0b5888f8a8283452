"""The result of an experiment: tables, figures and notes, written beside the run as a page, Markdown, LaTeX and JSON.

reproduce/<experiment>/result.json  result.md  result.tex  figure-*.png  figure-*.pdf  index.html
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grcf_ray.console import say, sentence
from grcf_ray.experiments.registry import Experiment
from grcf_ray.report import html
from grcf_ray.search.comparisons import few_seeds
from grcf_ray.storage import StoragePath
from grcf_ray.tables import Column, Table, fact_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure: its data, and the function that draws them."""

    name: str
    caption: str
    data: Mapping[str, Any]
    draw: Callable[[Mapping[str, Any]], Figure]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentResult:
    """The result of one experiment."""

    name: str = ""
    """The name of its folder, if options change the experiment [default: the experiment's]."""
    title: str
    paper: str = ""
    """The tables and figures of the paper that it reproduces."""
    tables: Sequence[Table]
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    """Definitions, and rows or cells that are left out."""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The provenance: command, data, versions, seeds."""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The figures behind the tables."""

    def named(self, experiment: Experiment) -> ExperimentResult:
        """Return the result with the name and the tables of its experiment."""
        return dataclasses.replace(self, name=self.name or experiment.name, paper=experiment.paper)

    def print(self) -> None:
        """Print title, tables and notes on standard output."""
        say(f"{self.title} ({self.paper})")
        for table in self.tables:
            table.print()
        if self.notes:
            say()
        for note in self.notes:
            say(note)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON, numbers in full."""
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            **self.about,
            "tables": [table.as_dict() for table in self.tables],
            "pictures": {picture.name: dict(picture.data) for picture in self.pictures},
            "notes": list(self.notes),
            "data": dict(self.data),
        }

    def markdown(self) -> str:
        """Return tables, figures and notes as Markdown."""
        lines = [f"# {self.title}", "", f"{self.paper}.", ""]
        lines += [f"- {key}: {fact_text(value)}" for key, value in self.about.items()]
        pictures = [
            part
            for picture in self.pictures
            for part in ("", f"![{picture.caption}](figure-{picture.name}.png)", "", picture.caption)
        ]
        # The first table is the answer, and others are long.
        first, *tables = self.tables
        lines += ["", first.markdown(), *pictures]
        lines += [part for table in tables for part in ("", table.markdown())]
        lines += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """Return the tables for a paper, with provenance and notes as comments."""
        about = [f"{key}: {fact_text(value)}" for key, value in self.about.items()]
        comments = [f"% {line}" for text in (*about, *self.notes) for line in text.splitlines()]
        return "\n".join([*comments, "", "\n\n".join(table.latex() for table in self.tables), ""])


def write_result(result: ExperimentResult, place: StoragePath) -> None:
    """Write an experiment's result in all forms; the page needs no other file."""
    pictures = []
    for picture in result.pictures:
        figure = picture.draw(picture.data)
        for kind in ("png", "pdf"):
            with (place / f"figure-{picture.name}.{kind}").writing() as path:
                # A time stamp would change the file at every writing.
                stamp: dict[str, Any] = {"CreationDate": None} if kind == "pdf" else {"Software": None}
                figure.savefig(path, format=kind, dpi=150, bbox_inches="tight", metadata=stamp)
        image = (place / f"figure-{picture.name}.png").read_bytes()
        pictures.append((picture, base64.b64encode(image).decode()))
    (place / "result.md").write_text(result.markdown())
    (place / "result.tex").write_text(result.latex())
    (place / "index.html").write_text(_page(result, pictures))
    # Last, so that it exists only beside the other files.
    (place / "result.json").write_json(result.as_dict())


def shown_columns(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Return the columns that have a value in any of the rows."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


def few_seeds_notes(seeds: int) -> list[str]:
    """Return the note that the seeds are too few for a claim; [] if they are enough."""
    note = few_seeds(seeds)
    return [note] if note else []


def _page(result: ExperimentResult, pictures: Sequence[tuple[Picture, str]]) -> str:
    tables = [
        html.Table(
            caption=table.title,
            columns=[column.title for column in table.columns],
            rows=table.cells(),
            hidden_caption=True,
        )
        for table in result.tables
    ]
    return html.render(
        "experiment.html",
        style=html.template_source("style.css"),
        result=result,
        tables=[(content, map(sentence, table.notes)) for content, table in zip(tables, result.tables, strict=True)],
        pictures=pictures,
        about={key: fact_text(value) for key, value in result.about.items()},
    )
