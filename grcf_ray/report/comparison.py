"""Two runs side by side: their differences, winners, metrics and cost, and what can be claimed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

from grcf_ray.console import duration, sentence, table_lines
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.summary import Comparison, Cost
from grcf_ray.report.terminal import comparison_lines as seed_lines
from grcf_ray.report.terminal import figure, one_line, setting, typed
from grcf_ray.report.view import RunView
from grcf_ray.search.comparisons import few_seeds, paired, retrainings

_ROOM, _GAP = 24, 2
"""Columns of a parameter's value, and between two values."""
_NAMES = {
    "data": "data: {}",
    "encoder": "encoder: {}",
    "budget": "budget: {}",
    "settings": "{}",
    "space": "{} (searched)",
    "versions": "version: {}",
}
"""Name of a difference, by section of the record."""


def compare_runs(first: RunView, second: RunView) -> dict[str, Any]:
    """Compare two runs; the result is JSON, and every difference is the first run minus the second.

    `differences`: values of data, encoder, budget, settings, space and versions that differ. `params`: of the winners.
    `valid`, `test`: metrics, with their `difference` if both runs have the metric and the same data. `seeds`: the
    retrainings of both winners, paired by seed (see `search.comparisons.paired`), or None. `claim`: the sentence that
    states what the difference shows.
    """
    views = (first, second)
    facts = [_facts(view) for view in views]
    same_data = facts[0]["data"]["fingerprint"] == facts[1]["data"]["fingerprint"]
    pairs, claim = _claim(first, second, same_data)
    return {
        "runs": [str(view.record) for view in views],
        "states": [view.info.state for view in views],
        "differences": {
            section: differing
            for section in facts[0]
            if (differing := _differing(facts[0][section], facts[1][section]))
        },
        "winners": [view.info.winner for view in views],
        "params": _beside(*(view.winner_params for view in views)),
        **{
            split: {
                name: {
                    "values": values,
                    "difference": values[0] - values[1] if same_data and None not in values else None,
                }
                for name, values in _beside(*((view.metrics or {}).get(split, {}) for view in views)).items()
            }
            for split in ("valid", "test")
        },
        "seeds": pairs,
        "claim": claim,
        "cost": _beside(*({"trials": len(v.all_trials), **Cost.of(v.all_trials).model_dump()} for v in views)),
    }


def comparison_lines(compared: Mapping[str, Any], *, width: int) -> Iterator[str]:
    """Yield the comparison as lines of a terminal. compared: from `compare_runs`."""
    titles = ("A", "B")
    for title, run, state in zip(titles, compared["runs"], compared["states"], strict=True):
        yield f"{title}: {typed(run)} ({one_line(state)})"
    yield ""
    if not compared["differences"]:
        yield "Data, encoder, budget, settings, space and versions are the same."
    else:
        named = {
            _NAMES[section].format(name): values
            for section, differing in compared["differences"].items()
            for name, values in differing.items()
        }
        room = max(8, (width - max(map(len, named)) - 2 * _GAP) // 2)
        rows = [(name, *(one_line(setting(value), room) for value in values)) for name, values in named.items()]
        yield from table_lines(("difference", *titles), rows, width=width)
    yield ""
    yield from table_lines(
        ("winner", *titles),
        [
            ("trial", *(one_line(winner or "none yet", _ROOM) for winner in compared["winners"])),
            *(
                (name, *(one_line(setting(value), _ROOM) for value in values))
                for name, values in compared["params"].items()
            ),
        ],
        width=width,
    )
    for split, title in (("valid", "valid (optimistic: the best of many)"), ("test", "test")):
        rows = [
            (title, *(figure(value) for value in entry["values"]), figure(entry["difference"], "+.4f"))
            for name, title in METRIC_TITLES.items()
            if (entry := compared[split].get(name))
        ]
        if rows:
            yield ""
            yield from table_lines((title, *titles, "A - B"), rows, width=width)
    yield ""
    if compared["seeds"]:
        pairs = compared["seeds"]
        yield f"Both winners retrained under {pairs['seeds']} common seeds, on test:"
        seeds = Comparison.model_validate({"titles": titles, "first": pairs["A"], "second": pairs["B"], **pairs})
        yield from seed_lines(seeds, width=width)
    yield from wrap(compared["claim"], width)
    yield ""
    cost = compared["cost"]
    shown = {
        "trials": [str(value) for value in cost["trials"]],
        "epochs": [str(value) for value in cost["epochs"]],
        "passes over train": [f"{value:.1f}" for value in cost["utterance_passes"]],
        "time in trials": [duration(value) for value in cost["trial_seconds"]],
    }
    yield from table_lines(("cost", *titles), [(name, *values) for name, values in shown.items()], width=width)


def _facts(view: RunView) -> dict[str, dict[str, Any]]:
    info = view.info
    counted = ("search.stage1_trials", "search.stage2_trials", "stage1.epochs", "stage2.epochs")
    return {
        "data": info.data.model_dump(include={"name", "task", "fingerprint", "label_range"}),
        "budget": {f"stage {stage}": f"{trials} x {epochs} epochs" for stage, (trials, epochs) in view.budgets.items()},
        "settings": {key: value for key, value in info.settings.items() if key not in counted},
        "space": {path: _dimension(value) for path, value in [*info.space.stage1.items(), *info.space.stage2.items()]},
        "encoder": {"weights": info.encoder and info.encoder.weights_sha256},
        "versions": info.versions,
    }


def _dimension(value: Mapping[str, Any]) -> str:
    if "choices" in value:
        return ", ".join(str(choice) for choice in value["choices"])
    return f"{value['low']:g} to {value['high']:g}{', log' if value['log'] else ''}"


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: values for name, values in _beside(first, second).items() if values[0] != values[1]}


def _beside(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [first.get(name), second.get(name)] for name in dict.fromkeys([*first, *second])}


def _claim(first: RunView, second: RunView, same_data: bool) -> tuple[dict[str, Any] | None, str]:
    """Return the retrainings of both winners, paired by seed, and what their difference shows."""
    if not same_data:
        return None, "The runs read different data: their figures cannot be compared."
    if first.metrics is None or second.metrics is None:
        return None, "No claim: one of the runs has no winner with test metrics."
    models = {}
    for side, view in (("A", first), ("B", second)):
        seeds = retrainings(view.record, view.info.winner) if view.info.winner else None
        models[side] = {m["seed"]: m["test"] for m in (seeds or {}).get("models", []) if m["arm"] == "winner"}
    single = [side for side, by_seed in models.items() if not by_seed]
    if len(single) == 2:
        return None, "One seed each: no claim. The seed alone changes the metrics; --seeds N on both measures how much."
    if single:
        return None, f"{single[0]} has one seed: no claim. --seeds N retrains its winner too."
    pairs = paired(models)
    if pairs["seeds"] < 2:
        return None, "No claim: the winners were retrained under fewer than two common seeds."
    claim = "Paired by seed; an interval that contains 0 shows no difference beyond seed noise."
    few = few_seeds(pairs["seeds"])
    return pairs, f"{claim} {sentence(few)}" if few else claim
