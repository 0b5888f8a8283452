"""The figures of a search, from its trial records."""

from __future__ import annotations

from typing import Literal

from grcf_ray.report.figures.cost import cost_plot
from grcf_ray.report.figures.curves import curves_plot
from grcf_ray.report.figures.failures import failures_plot
from grcf_ray.report.figures.handoff import handoff_plot
from grcf_ray.report.figures.history import history_plot
from grcf_ray.report.figures.importance import importance_plot
from grcf_ray.report.figures.parallel import parallel_plot
from grcf_ray.report.figures.slices import slices_plot
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView


def search_plots(view: RunView) -> list[Plot]:
    """Return the figures that the run has data for, in the order of the page."""
    stages: tuple[Literal[1, 2], ...] = (1, 2)
    plots = [
        *(
            plot(view, stage)
            for plot in (history_plot, importance_plot, parallel_plot, slices_plot)
            for stage in stages
        ),
        handoff_plot(view),
        *(curves_plot(view, stage) for stage in stages),
        cost_plot(view),
        failures_plot(view),
    ]
    return [plot for plot in plots if plot is not None]
