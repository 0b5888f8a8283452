"""Two runs side by side: what differs, their winners and figures, and what may be claimed of the difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Any

from grcf_ray.console import duration, sentence, table_lines
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.run_status import budgets
from grcf_ray.report.terminal import arms_lines, figure, one_line, setting, typed
from grcf_ray.report.view import RunView
from grcf_ray.search.comparisons import few_seeds, paired, retrainings

_ROOM, _GAP = 24, 2
"""Columns that a parameter may take beside another, and between two."""
_NAMES = {
    "data": "data: {}",
    "encoder": "encoder: {}",
    "budget": "budget: {}",
    "settings": "{}",
    "space": "{} (searched)",
    "versions": "version: {}",
}
"""How what differs is named, by the part of the record that it stands in."""


def compare_runs(one: RunView, other: RunView) -> dict[str, Any]:
    """Both runs as plain data; every difference is the first minus the second.

    `differences`: of data, encoder, budget, settings, space and versions, what the two have otherwise. `params`: of the
    winners. `valid`, `test`: metrics, each with `difference` where both have it and read the same data. `seeds`: the
    paired retrainings of both winners (see `search.seeds.paired`), None where there is nothing to pair. `claim`: what
    may be said of the difference.
    """
    views = (one, other)
    facts = [_facts(view) for view in views]
    same_data = facts[0]["data"]["fingerprint"] == facts[1]["data"]["fingerprint"]
    pairs, claim = _claim(one, other, same_data)
    return {
        "runs": [str(view.record) for view in views],
        "states": [view.run["state"] for view in views],
        "differences": {
            section: differing
            for section in facts[0]
            if (differing := _differing(facts[0][section], facts[1][section]))
        },
        "winners": [view.run.get("winner") for view in views],
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
        "cost": _beside(*(_cost(view) for view in views)),
    }


def comparison_lines(found: Mapping[str, Any], *, width: int) -> Iterator[str]:
    """The comparison for a terminal."""
    titles = ("A", "B")
    for title, run, state in zip(titles, found["runs"], found["states"], strict=True):
        yield f"{title}: {typed(run)} ({one_line(state)})"
    yield ""
    if not found["differences"]:
        yield "Data, budget, settings, space and versions are the same."
    else:
        named = {
            _NAMES[section].format(name): values
            for section, differing in found["differences"].items()
            for name, values in differing.items()
        }
        room = max(8, (width - max(map(len, named)) - 2 * _GAP) // 2)
        rows = [(name, *(one_line(setting(value), room) for value in values)) for name, values in named.items()]
        yield from table_lines(("what differs", *titles), rows, width=width)
    yield ""
    yield from table_lines(
        ("winner", *titles),
        [
            ("trial", *(one_line(winner or "none yet", _ROOM) for winner in found["winners"])),
            *(
                (name, *(one_line(setting(value), _ROOM) for value in values))
                for name, values in found["params"].items()
            ),
        ],
        width=width,
    )
    for split, title in (("valid", "valid (optimistic: the best of many)"), ("test", "test")):
        rows = [
            (title, *(figure(value) for value in entry["values"]), _signed(entry["difference"]))
            for name, title in METRIC_TITLES.items()
            if (entry := found[split].get(name))
        ]
        if rows:
            yield ""
            yield from table_lines((title, *titles, "A - B"), rows, width=width)
    yield ""
    if found["seeds"]:
        yield f"Both winners trained anew under {found['seeds']['seeds']} seeds that they share, on test:"
        yield from arms_lines(titles, found["seeds"]["A"], found["seeds"]["B"], found["seeds"]["gain"], width=width)
    yield from wrap(found["claim"], width)
    yield ""
    cost = found["cost"]
    shown = {
        "trials": [str(value) for value in cost["trials"]],
        "epochs": [str(value) for value in cost["epochs"]],
        "passes over train": [f"{value:.1f}" for value in cost["utterance_passes"]],
        "time in trials": [duration(value) for value in cost["trial_seconds"]],
    }
    yield from table_lines(("cost", *titles), [(name, *values) for name, values in shown.items()], width=width)


def _facts(view: RunView) -> dict[str, dict[str, Any]]:
    run = view.run
    stages = budgets(run)
    counted = ("search.stage1_trials", "search.stage2_trials", "stage1.epochs", "stage2.epochs")
    space = run["space"]
    return {
        "data": {key: run["data"].get(key) for key in ("name", "task", "fingerprint", "label_range")},
        "budget": {f"stage {stage}": f"{trials} x {epochs} epochs" for stage, (trials, epochs) in stages.items()},
        "settings": {key: value for key, value in run["settings"].items() if key not in counted},
        "space": {path: _dimension(value) for stage in ("stage1", "stage2") for path, value in space[stage].items()},
        "encoder": {"weights": run["encoder"]["weights_sha256"] if "encoder" in run else None},
        "versions": dict(run.get("versions", {})),
    }


def _dimension(value: Mapping[str, Any]) -> str:
    if "choices" in value:
        return ", ".join(str(choice) for choice in value["choices"])
    return f"{value['low']:g} to {value['high']:g}{', log' if value['log'] else ''}"


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: values for name, values in _beside(ours, theirs).items() if values[0] != values[1]}


def _beside(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [ours.get(name), theirs.get(name)] for name in dict.fromkeys([*ours, *theirs])}


def _cost(view: RunView) -> dict[str, Any]:
    trials = [trial for of in view.trials.values() for trial in of]
    return {
        "trials": len(trials),
        "epochs": sum(trial.epoch for trial in trials),
        "utterance_passes": sum(trial.utterance_passes for trial in trials),
        "trial_seconds": sum(trial.seconds for trial in trials),
    }


def _claim(one: RunView, other: RunView, same_data: bool) -> tuple[dict[str, Any] | None, str]:
    """The paired retrainings, where there are any, and what may be said of the difference."""
    if not same_data:
        return None, "The runs read different data: their figures cannot be compared."
    if one.metrics is None or other.metrics is None:
        return None, "Not both have a winner that was measured: no claim."
    models = {}
    for side, view in (("A", one), ("B", other)):
        found = retrainings(view.record, view.run["winner"]) if view.run.get("winner") else None
        models[side] = {m["seed"]: m["test"] for m in (found or {}).get("models", []) if m["arm"] == "winner"}
    lacking = [side for side, of in models.items() if not of]
    if len(lacking) == 2:
        return None, "One seed each: no claim. Seeds alone move these figures; --seeds N on both says how much."
    if lacking:
        return None, f"{lacking[0]} has one seed: no claim. --seeds N retrains its winner too."
    pairs = paired(models)
    if pairs["seeds"] < 2:
        return None, "The winners were trained anew under fewer than two seeds that they share: no claim."
    claim = "Paired by seed; an interval that holds 0 is no difference that these seeds show."
    few = few_seeds(pairs["seeds"])
    return pairs, f"{claim} {sentence(few)}" if few else claim


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
