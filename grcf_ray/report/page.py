"""`report.html`, a run on one page that needs nothing else, and `report.json`, the data of its figures.

The page is read from a disk without a network: it holds its styles, scripts and plotly.js, and its content security
policy forbids every connection and every other script.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from grcf_ray.config import encoder_name
from grcf_ray.plugins import model_title
from grcf_ray.report import page_sections
from grcf_ray.report.figure_tables import ROWS, tables_of
from grcf_ray.report.figures.model import model_plots
from grcf_ray.report.figures.search import search_plots
from grcf_ray.report.figures.worth import worth_plot
from grcf_ray.report.html import Table, render, template_source
from grcf_ray.report.plot import Plot
from grcf_ray.report.summary import REPORT, RunSummary
from grcf_ray.report.view import DIED, RunView
from grcf_ray.report.worth import Worth
from grcf_ray.search.record import RunRecord, now
from grcf_ray.storage import StoragePath

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DATA = "report.json"

_STATES = {
    "running": "is running",
    "finished": "has finished",
    "time is up": "was ended by its time budget",
    "unfinished": "has left trials unfinished",
    "interrupted": "was interrupted",
    "failed": "has failed",
    DIED: "stopped without reporting an error",
}
"""The end of the sentence that tells a search's state."""
_HEIGHT = 450
"""Pixels of a figure that names no height."""
_TABLES = 30
"""Tables of data under one figure; report.json has all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A section of figures."""

    name: str
    """Its anchor."""
    title: str
    plots: Sequence[Plot]
    empty: str
    """The text that replaces missing plots."""
    missing: Sequence[str] = ()
    """Sentences on figures that cannot be shown."""


def sections(view: RunView, worth: Worth | None, *, going_on: bool = False) -> list[Section]:
    """Return the run's figures. going_on: without those of the best model, which are slow and not final."""
    model = [] if going_on else [*filter(None, [worth_plot(worth) if worth else None]), *model_plots(view)]
    search = search_plots(view)
    none = (
        "These figures follow when the search has ended." if going_on else "No predictions of a best model on record."
    )
    return [
        Section(name="model", title="The best model", plots=model, empty=none),
        Section(
            name="search",
            title="The search",
            plots=search,
            empty="No trial has started.",
            missing=list(_missing_importances(view, {plot.name for plot in search})),
        ),
    ]


def _missing_importances(view: RunView, shown: Collection[str]) -> Iterator[str]:
    for stage, trials in view.trials.items():
        if trials and f"importance-stage{stage}" not in shown:
            complete = sum(trial.state == "complete" for trial in trials)
            why = f"too few trials are complete ({complete}), or all have the same result"
            yield f"Stage {stage}: parameter importances are unknown: {why}."


def write_report(record: RunRecord, *, page: StoragePath | None = None, going_on: bool = False) -> StoragePath:
    """Write the page (default: into the run) and its data beside it; return the page's place.

    Each file appears whole. DataError if there is no run.
    """
    view = RunView.read(record)
    summary, page = RunSummary.of(view), page or record.place / REPORT
    parts = sections(view, summary.worth, going_on=going_on)
    data, content = report_data(view, parts), render_page(view, summary, parts)
    page.beside(DATA).write_json(data)
    page.write_text(content)
    return page


def report_data(view: RunView, sections: Iterable[Section]) -> dict[str, Any]:
    """Return the content of report.json: `plots` has the data of each figure by its name."""
    return {
        "run": view.record.place.name,
        "state": view.info.state,
        "written": now(),
        "plots": {plot.name: plot.data for section in sections for plot in section.plots},
    }


def render_page(view: RunView, summary: RunSummary, sections: Sequence[Section]) -> str:
    """Return the page as HTML."""
    from plotly.offline import get_plotlyjs

    script, plotly, written = template_source("page.js"), Markup(get_plotlyjs()), now()
    return render(
        "page.html",
        policy=_policy(script, plotly),
        run=view.record.place.name,
        data_name=view.info.data.name,
        model=model_title(view.info.settings["model.name"]),
        encoder=encoder_name(view.info.settings),
        state=_STATES.get(view.state, view.state),
        written=written,
        written_text=f"{datetime.datetime.fromisoformat(written):%Y-%m-%d %H:%M} UTC",
        summary=summary,
        answer=page_sections.answer(view, summary),
        sections=[{**vars(part), "figures": list(map(_figure, part.plots))} for part in sections],
        failures=page_sections.failures(summary),
        cost=page_sections.cost(view),
        trials={stage: page_sections.trials_data(view, stage) for stage in view.budgets},
        provenance=page_sections.provenance(view),
        style=template_source("style.css"),
        script=script,
        plotly=plotly,
    )


def _policy(*scripts: str) -> str:
    """Return a policy that allows no connection, and no script but these; plotly sets styles and saves by blobs."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _figure(plot: Plot) -> dict[str, Any]:
    drawing = _drawing(plot.draw(plot.data))
    tables = tables_of(plot.data)
    table = plot.data.get("table")
    return {
        "name": plot.name,
        "title": plot.title,
        "caption": plot.caption,
        "summary": plot.summary,
        "warning": plot.warning,
        "height": f"{drawing['layout'].get('height', _HEIGHT):g}",
        "drawing": drawing,
        "table": table and Table(caption=plot.title, **table, hidden_caption=True),
        "data": [
            dataclasses.replace(
                part,
                caption=(part.caption or "Values")
                + (f" (the first {ROWS} of {len(part.rows)} rows)" if len(part.rows) > ROWS else ""),
                rows=part.rows[:ROWS],
            )
            for part in tables[:_TABLES]
        ],
        "more": max(0, len(tables) - _TABLES),
    }


def _drawing(figure: Figure) -> dict[str, Any]:
    """Return the figure for plotly.js without a template, since the page has one for each theme."""
    drawing: dict[str, Any] = json.loads(figure.to_json())
    drawing["layout"].pop("template", None)
    drawing["layout"].pop("width", None)
    return drawing
