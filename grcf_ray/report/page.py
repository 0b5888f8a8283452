"""`report.html`: a run on one page that needs nothing else, and `report.json`, the data of its figures.

The page is read from a disk, without a network: styles, scripts and plotly.js stand in it, and its policy forbids it
every connection and every script that was not written into it. Strings of the data are text wherever they stand.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from grcf_ray.config import encoder_name
from grcf_ray.report import page_sections
from grcf_ray.report.answer import STATES, answer
from grcf_ray.report.figure_tables import ROWS, tables_of
from grcf_ray.report.figures.model import model_plots
from grcf_ray.report.figures.search import search_plots
from grcf_ray.report.markup import Markup, element, script_json, section, table
from grcf_ray.report.plot import Plot
from grcf_ray.report.run_status import standing_of
from grcf_ray.report.terminal import REPORT
from grcf_ray.report.view import RunView
from grcf_ray.search.record import RunRecord, now
from grcf_ray.storage import StoragePath

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DATA = "report.json"

_FACTS = {
    "failures": "Failures",
    "cost": "Cost",
    "trials": "Every trial",
    "provenance": "Where it comes from",
}
_HEIGHT = 450
"""Pixels of a figure that names no height of its own."""
_TABLES = 30
"""Tables of data under one figure; report.json has all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Figures that belong together."""

    name: str
    """Its anchor."""
    title: str
    plots: Sequence[Plot]
    empty: str
    """What is said in the place of no plots."""
    missing: Sequence[str] = ()
    """What is not shown, and why."""


def sections(view: RunView, *, going_on: bool = False) -> list[Section]:
    """The run's figures. going_on: without those of the best model, which are slow and not the last."""
    model = [] if going_on else model_plots(view)
    search = search_plots(view)
    none = "They come when the search has ended." if going_on else "There are no predictions of a best model on record."
    return [
        Section(name="model", title="The best model", plots=model, empty=none),
        Section(
            name="search",
            title="The search",
            plots=search,
            empty="No trial has begun.",
            missing=list(_untold(view, {plot.name for plot in search})),
        ),
    ]


def _untold(view: RunView, shown: Collection[str]) -> Iterator[str]:
    """Early stopping may leave so few whole trials that nothing can be said of what mattered."""
    for stage, trials in view.trials.items():
        if trials and f"importance-stage{stage}" not in shown:
            whole = sum(trial.state == "complete" for trial in trials)
            why = f"too few trials ran to the end ({whole}), or all alike"
            yield f"Stage {stage}: which parameters mattered cannot be told: {why}."


def write_report(record: RunRecord, *, page: StoragePath | None = None, going_on: bool = False) -> StoragePath:
    """Write the page of a run, by default into it, and the data of its figures beside; returns the page's place.

    Each file appears whole. DataError where there is no run.
    """
    view = RunView.read(record)
    page = page or record.place / REPORT
    parts = sections(view, going_on=going_on)
    data, content = report_data(view, parts), render_page(view, parts)
    page.beside(DATA).write_json(data)
    page.write_text(content)
    return page


def report_data(view: RunView, sections: Iterable[Section]) -> dict[str, Any]:
    """What the figures show, apart from how: `plots` has each one's data by its name."""
    return {
        "run": view.record.place.name,
        "state": view.run["state"],
        "written": now(),
        "plots": {plot.name: plot.data for section in sections for plot in section.plots},
    }


def render_page(view: RunView, sections: Sequence[Section]) -> str:
    """The page as HTML."""
    from plotly.offline import get_plotlyjs

    title = view.record.place.name
    style, script, plotly = _asset("page.css"), _asset("page.js"), get_plotlyjs()
    state = standing_of(view.record, view.run).state
    parts = [answer(view, state), *map(_figures, sections)]
    parts += [
        page_sections.failures(view),
        page_sections.cost(view),
        page_sections.trials(view),
        page_sections.provenance(view),
    ]
    links = [("answer", "Answer"), *((part.name, part.title) for part in sections), *_FACTS.items()]
    return Template(_asset("page.html")).substitute(
        policy=element("meta", http_equiv="Content-Security-Policy", content=_policy(script, plotly)),
        title=element("title", f"{title}: GRCF search"),
        heading=element("h1", title),
        about=element("p", f"{_about(view)}. The search {STATES.get(state, state)}; written ", _moment(now()), "."),
        links="".join(element("li", element("a", text, href=f"#section-{name}")) for name, text in links),
        main="\n".join(parts),
        style=style,
        script=script,
        plotly=plotly,
    )


def _about(view: RunView) -> str:
    settings, name = view.run["settings"], view.run["data"]["name"]
    return f"GRCF on {name}, text encoder {encoder_name(settings)}"


def _moment(time: str) -> Markup:
    return element("time", f"{datetime.datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC", datetime=time)


def _asset(name: str) -> str:
    return (files("grcf_ray.report") / "assets" / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """No connection, and no script but these. Plotly sets styles of elements, and saves a figure by way of a blob."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _figures(of: Section) -> Markup:
    missing = [element("p", reason, class_="warning") for reason in of.missing]
    return section(of.name, of.title, *([_figure(plot) for plot in of.plots] or [element("p", of.empty)]), *missing)


def _figure(plot: Plot) -> Markup:
    drawing = _drawing(plot.draw(plot.data))
    height = drawing["layout"].get("height", _HEIGHT)
    drawn = element(
        "div", class_="plot", role="img", aria_label=plot.summary, data_plot=plot.name, style=f"min-height:{height:g}px"
    )
    return element(
        "figure",
        element("h3", plot.title, id=f"{plot.name}-title"),
        None if plot.warning is None else element("p", element("strong", "Mind: "), plot.warning, class_="warning"),
        drawn,
        element("figcaption", plot.caption),
        *_data(plot),
        script_json(drawing, data_figure=plot.name),
        id=plot.name,
        aria_labelledby=f"{plot.name}-title",
    )


def _drawing(figure: Figure) -> dict[str, Any]:
    """The figure as plotly.js takes it, without a template: the page has one for each theme."""
    drawing: dict[str, Any] = json.loads(figure.to_json())
    drawing["layout"].pop("template", None)
    drawing["layout"].pop("width", None)
    return drawing


def _data(plot: Plot) -> Iterator[Markup]:
    """The table that the figure goes with, and the figure's own data as tables."""
    if shown := plot.data.get("table"):
        yield table(shown["columns"], shown["rows"], caption=plot.title, hidden_caption=True)
    tables = tables_of(plot.data)
    if not tables:
        return
    content = []
    for part in tables[:_TABLES]:
        more = f" (the first {ROWS} of {len(part.rows)} rows)" if len(part.rows) > ROWS else ""
        content.append(table(part.columns, part.rows[:ROWS], caption=(part.name or "Values") + more))
    if len(tables) > _TABLES:
        content.append(element("p", f"{len(tables) - _TABLES} more tables of it are in {DATA}."))
    yield element("details", element("summary", f"The data of “{plot.title}”"), *content)
