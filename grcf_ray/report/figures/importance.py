"""Parameter importances (the paper's Figure 9) by a random forest, fANOVA and PED-ANOVA.

Only complete trials count: a stopped trial has the value of fewer epochs, so that its length would look like an effect
of its settings. Parameters are on the searched scale, so that each decade of a learning rate has the same weight. The
same trials give the same figures.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.figures.layout import name_axis, new_figure, shown
from grcf_ray.report.figures.palette import SERIES
from grcf_ray.report.figures.parameters import Parameter, searched
from grcf_ray.report.plot import Plot
from grcf_ray.report.view import RunView
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.space import Range, Space
from grcf_ray.train.curve import DIRECTIONS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

METHODS = {"forest": "random forest", "fanova": "fANOVA", "ped_anova": "PED-ANOVA"}
LEAST_TRIALS = 4
"""Least number of complete trials."""
TRIALS_PER_PARAMETER = 10
"""With fewer complete trials for each parameter, the figure has a warning."""
EXPLAINED = 0.1
"""With a smaller out-of-bag R² of the forest, the figure has a warning."""

_SEEDS = 5
_FOREST_TREES, _FANOVA_TREES, _FANOVA_DEPTH = 32, 16, 7
"""With trees of full depth, fANOVA takes half a minute per seed for a thousand trials."""


def importance_data(trials: Sequence[TrialRecord], stage: Literal[1, 2], space: Space) -> dict[str, Any]:
    """Return the importances of the stage's parameters, most important to the forest first.

    The importances of a method sum to 1, or are all 0 if it sees no difference.

    `methods`: by name, for each of `parameters`, the `mean` over several seeds and its `spread` (standard deviation),
    which PED-ANOVA lacks, since it is not random. Empty with too few complete trials, or without differences between
    them. `constant`: parameters with a single value. `explained`: out-of-bag R² of the forest. `enough`: whether there
    are enough trials for the number of parameters.
    """
    parameters = searched(trials, stage, space)
    used = [
        trial
        for trial in trials
        if trial.state == "complete"
        and trial.objective is not None
        and all(parameter.value(trial.params) is not None for parameter in parameters)
    ]
    varying = [p for p in parameters if len({p.value(trial.params) for trial in used}) > 1]
    data: dict[str, Any] = {
        "stage": stage,
        **_named(varying),
        "constant": [parameter.path for parameter in parameters if parameter not in varying],
        "trials": len(used),
        "seeds": _SEEDS,
        "explained": None,
        "enough": len(used) >= TRIALS_PER_PARAMETER * len(varying),
        "methods": {},
    }
    result_N = np.array([trial.objective for trial in used], np.float64)
    if not varying or len(used) < LEAST_TRIALS or np.ptp(result_N) == 0:
        return data
    place_PN = np.array(
        [[p.place(value) for trial in used if (value := p.value(trial.params)) is not None] for p in varying]
    )
    forests, explained = _forests(varying, place_PN, result_N)
    shares = {"forest": forests, **_by_optuna(varying, place_PN, result_N, stage)}
    order = sorted(range(len(varying)), key=lambda index: -statistics.fmean(row[index] for row in forests))
    methods = {}
    for method, rows in shares.items():
        columns = [[row[index] for row in rows] for index in order]
        spread = list(map(statistics.stdev, columns)) if len(rows) > 1 else None
        methods[method] = {"mean": list(map(statistics.fmean, columns)), "spread": spread}
    return data | _named([varying[index] for index in order]) | {"explained": explained, "methods": methods}


def importance_warning(data: Mapping[str, Any]) -> str | None:
    """Return why the importances may be chance, or None."""
    reasons = []
    if not data["enough"]:
        reasons.append(
            f"only {data['trials']} trials are complete, fewer than {TRIALS_PER_PARAMETER} for each of "
            f"{len(data['parameters'])} parameters"
        )
    if data["explained"] is not None and data["explained"] < EXPLAINED:
        reasons.append(f"the forest does not predict unseen trials (out-of-bag R² {data['explained']:.2f})")
    return f"The importances may be chance: {', and '.join(reasons)}." if reasons else None


def draw_importance(data: Mapping[str, Any]) -> Figure:
    """Draw a bar for each parameter and method, most important parameter at the top."""
    labels = [shown(label, 24) for label in data["labels"]]
    figure = new_figure(
        140 + 50 * len(labels),
        xaxis={"title": "share of the importance", "tickformat": ".0%", "rangemode": "tozero"},
        yaxis=name_axis(labels) | {"autorange": "reversed"},
        barmode="group",
    )
    for (method, shares), colour in zip(data["methods"].items(), SERIES, strict=False):
        figure.add_bar(
            x=shares["mean"],
            y=list(range(len(labels))),
            orientation="h",
            name=METHODS[method],
            marker={"color": colour},
            error_x=None if shares["spread"] is None else {"array": shares["spread"], "thickness": 1, "width": 2},
            hovertemplate="%{x:.1%}",
        )
    return figure


def importance_plot(view: RunView, stage: Literal[1, 2]) -> Plot | None:
    """Return the figure, or None with too few complete trials, or without differences between them."""
    data = importance_data(view.trials[stage], stage, view.space)
    if not data["methods"]:
        return None
    metric = METRIC_TITLES[view.objective(stage)]
    parts = []
    for method, shares in data["methods"].items():
        label, share = max(zip(data["labels"], shares["mean"], strict=True), key=lambda entry: entry[1])
        parts.append(f"{METHODS[method]} {label} ({share:.0%})" if share else f"{METHODS[method]} none")
    constant = f" Not shown, since constant: {', '.join(data['constant'])}." if data["constant"] else ""
    return Plot(
        name=f"importance-stage{stage}",
        title=f"Stage {stage}: parameter importances",
        caption=f"How much of the variation in validation {metric} each parameter explains. Random forest and fANOVA "
        f"measure it over all trials (mean and deviation over {data['seeds']} seeds). PED-ANOVA measures which "
        f"parameters separate the best tenth. Only the {data['trials']} complete trials count, so the figure does not "
        "show why trials stopped early. "
        f"The forest's out-of-bag R² is {data['explained']:.2f}.{constant}",
        summary=f"Most important by {'; '.join(parts)}.",
        data=data,
        draw=draw_importance,
        warning=importance_warning(data),
    )


def _named(parameters: Sequence[Parameter]) -> dict[str, list[str]]:
    return {"parameters": [p.path for p in parameters], "labels": [p.label for p in parameters]}


def _forests(
    parameters: Sequence[Parameter], place_PN: NDArray[np.float64], result_N: NDArray[np.float64]
) -> tuple[list[list[float]], float]:
    """Return the share of impurity by seed and parameter, and the mean out-of-bag R²; a choice is one-hot."""
    from sklearn.ensemble import RandomForestRegressor

    levels = [
        place_N[None] if isinstance(p.scale, Range) else place_N == np.arange(len(p.scale))[:, None]
        for p, place_N in zip(parameters, place_PN, strict=True)
    ]
    owner = np.repeat(np.arange(len(parameters)), list(map(len, levels)))
    design_NC = np.concatenate(levels).T.astype(np.float32)
    shares, explained = [], []
    for seed in range(_SEEDS):
        forest = RandomForestRegressor(n_estimators=_FOREST_TREES, random_state=seed, oob_score=True)
        forest.fit(design_NC, result_N)
        shares.append(np.bincount(owner, forest.feature_importances_, len(parameters)).tolist())
        explained.append(float(forest.oob_score_))
    return shares, statistics.fmean(explained)


def _by_optuna(
    parameters: Sequence[Parameter],
    place_PN: NDArray[np.float64],
    result_N: NDArray[np.float64],
    stage: Literal[1, 2],
) -> dict[str, list[list[float]]]:
    """Return the shares of fANOVA by seed, and of PED-ANOVA once, by parameter on its searched scale."""
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space: dict[str, BaseDistribution] = {
        p.path: FloatDistribution(0.0, 1.0)
        if isinstance(p.scale, Range)
        else CategoricalDistribution(range(len(p.scale)))
        for p in parameters
    }
    study = optuna.create_study(direction="minimize" if DIRECTIONS[stage] == "min" else "maximize")
    for result, place_P in zip(result_N, place_PN.T, strict=True):
        params = dict(zip(space, place_P.tolist(), strict=True))
        study.add_trial(optuna.trial.create_trial(value=result, params=params, distributions=space))
    evaluators: dict[str, list[Any]] = {
        "fanova": [
            FanovaImportanceEvaluator(n_trees=_FANOVA_TREES, max_depth=_FANOVA_DEPTH, seed=seed)
            for seed in range(_SEEDS)
        ],
        "ped_anova": [PedAnovaImportanceEvaluator()],
    }

    def shares(evaluator: Any) -> list[float]:
        raw = get_param_importances(study, evaluator=evaluator, normalize=False)
        # Optuna's normalisation makes all parameters equally important if there is no difference.
        total = sum(raw.values()) or 1.0
        return [float(raw[path] / total) for path in space]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # If all trials tie with the best tenth, PED-ANOVA warns and its shares are 0.
        warnings.filterwarnings("ignore", "Target and region quantiles")
        return {method: [shares(evaluator) for evaluator in several] for method, several in evaluators.items()}
