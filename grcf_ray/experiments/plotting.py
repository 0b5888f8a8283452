"""The look of the experiments' figures: matplotlib without a display, in a palette for the colour-blind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.statistics import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito, dark colours first."""
_ASIDE = 0.012
"""The offset between neighbouring lines, as a share of their width."""


def panels(number: int, *, columns: int = 2, width: float = 4.5, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row."""
    from matplotlib.figure import Figure

    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[number:]:
        unused.set_axis_off()
    return figure, axes[:number]


def spread_line(name: str, values: Sequence[float], figures: Sequence[Spread | None]) -> dict[str, Any]:
    """Return a line of `draw_lines` through the values that have a figure, with one deviation as error."""
    known = [(value, figure) for value, figure in zip(values, figures, strict=True) if figure]
    return {
        "name": name,
        "x": [value for value, _ in known],
        "y": [figure.mean for _, figure in known],
        "error": [figure.deviation or 0.0 for _, figure in known],
    }


def metric_panel(metric: str, x_title: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a panel of `draw_lines` for a metric."""
    title = METRIC_TITLES[metric]
    return {"title": title, "x_title": x_title, "y_title": title, "lines": lines}


def draw_lines(data: Mapping[str, Any]) -> Figure:
    """Draw panels of lines with error bars.

    data: `panels`, each with `title`, `x_title`, `y_title` and `lines`; a line has `name`, `x`, `y` and `error`. All
    panels have the same lines.
    """
    figure, axes = panels(len(data["panels"]))
    for axis, panel in zip(axes, data["panels"], strict=True):
        lines: Sequence[Mapping[str, Any]] = panel["lines"]
        width = max((max(line["x"]) - min(line["x"]) for line in lines if line["x"]), default=0)
        for place, (colour, line) in enumerate(zip(COLOURS, lines, strict=False)):
            # The offset keeps error bars from hiding each other.
            aside = (place - (len(lines) - 1) / 2) * _ASIDE * width
            axis.errorbar(
                [x + aside for x in line["x"]],
                line["y"],
                yerr=line["error"],
                label=line["name"],
                color=colour,
                marker="o",
                ms=3,
                capsize=2,
            )
        axis.set(title=panel["title"], xlabel=panel["x_title"], ylabel=panel["y_title"])
        axis.grid(alpha=0.3)
    if len(data["panels"][0]["lines"]) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def draw_differences(data: Mapping[str, Any]) -> Figure:
    """Draw panels of differences to a reference with their intervals, a line for each row, and mark 0.

    data: `panels`, each with `title`, `better` (lower or higher) and `rows`: `title`, `difference`, `low` and `high`.
    """
    rows = max(len(panel["rows"]) for panel in data["panels"])
    figure, axes = panels(len(data["panels"]), width=5.0, height=1.0 + 0.3 * rows)
    for axis, panel in zip(axes, data["panels"], strict=True):
        places = range(len(panel["rows"]))
        middle = [row["difference"] for row in panel["rows"]]
        # With few utterances the interval may not hold the mean.
        below = [max(0, row["difference"] - row["low"]) for row in panel["rows"]]
        above = [max(0, row["high"] - row["difference"]) for row in panel["rows"]]
        axis.axvline(0, color="#808080", lw=1)
        axis.errorbar(middle, places, xerr=[below, above], fmt="o", ms=4, capsize=3, color=COLOURS[0])
        axis.set_yticks(places, [row["title"] for row in panel["rows"]], fontsize="small", parse_math=False)
        axis.set(title=f"{panel['title']} ({panel['better']} is better)", ylim=(len(panel["rows"]) - 0.5, -0.5))
        axis.title.set_fontsize("medium")
        axis.locator_params(axis="x", nbins=5)
        axis.grid(alpha=0.3, axis="x")
    return figure


def draw_ranks(data: Mapping[str, Any]) -> Figure:
    """Draw mean ranks on a line for each arm, best first, and a bar over each group that the seeds do not tell apart.

    data: `rows`, best first, each with `title` and `rank`; `critical`, the critical difference; `groups`, pairs of the
    first and the last place of rows that a bar joins.
    """
    rows, groups = data["rows"], data["groups"]
    figure, (axis,) = panels(1, width=6.0, height=1.4 + 0.3 * len(rows))
    places = range(len(rows))
    axis.plot([row["rank"] for row in rows], places, "o", ms=5, color=COLOURS[0])
    for number, (first, last) in enumerate(groups):
        # Bars stand to the right of all ranks.
        axis.plot([len(rows) + 0.3 * (number + 1)] * 2, [first - 0.2, last + 0.2], color=COLOURS[1], lw=4)
    axis.plot([1, 1 + data["critical"]], [-0.8, -0.8], color="#000000", marker="|")
    axis.annotate(f"critical difference {data['critical']:.2f}", (1, -1), fontsize="small")
    axis.set_yticks(places, [row["title"] for row in rows], fontsize="small", parse_math=False)
    axis.set(xlabel="mean rank (1 is best)", ylim=(len(rows) - 0.5, -1.6))
    axis.grid(alpha=0.3, axis="x")
    return figure
