"""What an experiment found: tables, figures and words, written beside the run in every form that people ask for.

reproduce/<experiment>/result.json  result.md  result.tex  figure-*.png  figure-*.pdf  index.html
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grcf_ray.storage import Place
from grcf_ray.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Outcome", "Picture", "write_outcome"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure: its data, apart from how it is drawn."""

    name: str
    caption: str
    data: Mapping[str, Any]
    draw: Callable[[Mapping[str, Any]], Figure]
    """Makes the figure of the data alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One experiment's result."""

    name: str
    title: str
    paper: str
    """The tables and figures of the paper that it stands beside."""
    tables: Sequence[Table]
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    """What was defined, left out, or cannot be had."""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Command, data, versions, seeds."""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Every figure behind the tables."""

    def print(self) -> None:
        """Title, tables and notes on standard output."""
        print(f"{self.title} ({self.paper})")
        for table in self.tables:
            table.print()
        if self.notes:
            print()
        for note in self.notes:
            print(note)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, numbers in full."""
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
        """Tables, figures and notes, as Markdown."""
        lines = [f"# {self.title}", "", f"{self.paper}.", ""]
        lines += [f"- {key}: {_shown(value)}" for key, value in self.about.items()]
        lines += [part for table in self.tables for part in ("", table.markdown())]
        lines += [
            part
            for picture in self.pictures
            for part in ("", f"![{picture.caption}](figure-{picture.name}.png)", "", picture.caption)
        ]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """The tables, to be put into a paper."""
        return "\n\n".join(table.latex() for table in self.tables) + "\n"


def write_outcome(outcome: Outcome, place: Place) -> None:
    """Write an experiment's result; the page is whole in itself."""
    pictures = []
    for picture in outcome.pictures:
        figure = picture.draw(picture.data)
        for kind in ("png", "pdf"):
            with (place / f"figure-{picture.name}.{kind}").writing() as path:
                # The time of day would make every writing another file.
                stamp: dict[str, Any] = {"CreationDate": None} if kind == "pdf" else {"Software": None}
                figure.savefig(path, format=kind, dpi=150, bbox_inches="tight", metadata=stamp)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
        pictures.append((picture, base64.b64encode(buffer.getvalue()).decode()))
    (place / "result.md").write_text(outcome.markdown())
    (place / "result.tex").write_text(outcome.latex())
    (place / "index.html").write_text(_page(outcome, pictures))
    # Last: where it is, the rest is.
    (place / "result.json").write_json(outcome.as_dict())


def _shown(value: Any) -> str:
    return ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.box { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead tr { border-bottom: 2px solid; }
tbody tr + tr { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
img { max-width: 100%; background: white; border-radius: .25rem; }
figure { margin: 1.5rem 0; }
"""


def _page(outcome: Outcome, pictures: Sequence[tuple[Picture, str]]) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>{html.escape(outcome.title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{html.escape(outcome.title)}</h1><p>{html.escape(outcome.paper)}.</p>",
    ]
    for table in outcome.tables:
        parts.append(f'<h2>{html.escape(table.title)}</h2><div class="box" tabindex="0"><table><thead><tr>')
        parts.append(cells("th", [column.title for column in table.columns]) + "</tr></thead><tbody>")
        parts += [f"<tr>{cells('td', row)}</tr>" for row in table.cells()]
        parts.append("</tbody></table></div>")
        parts += [f"<p>{html.escape(note[:1].upper() + note[1:])}.</p>" for note in table.notes]
    for picture, content in pictures:
        caption = html.escape(picture.caption)
        parts.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{content}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts += [f"<p>{html.escape(note)}</p>" for note in outcome.notes]
    parts.append("<h2>Where it comes from</h2><ul>")
    parts += [f"<li>{html.escape(key)}: {html.escape(_shown(value))}</li>" for key, value in outcome.about.items()]
    parts.append("</ul></main></body></html>")
    return "\n".join(parts) + "\n"
