"""The summary of a run: every figure that the terminal, the page, the model card and `--json` give of a search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from grcf_ray.config import Task
from grcf_ray.console import sentence
from grcf_ray.data.datasets import TWO_READINGS
from grcf_ray.metrics import METRIC_DIRECTIONS, METRIC_TITLES, acc_whole_note
from grcf_ray.report.view import RunView
from grcf_ray.report.worth import Worth
from grcf_ray.search.comparisons import against_baseline, baseline_kind, few_seeds, retrainings
from grcf_ray.search.failures import failures_by_cause
from grcf_ray.search.record import TrialRecord, rank
from grcf_ray.search.schema import Baseline, BestTrials, Estimate, SeedsFile
from grcf_ray.train.curve import objective_name

REPORT = "report.html"
"""File name of the page in its run."""
ONE_SEED = "One seed: the gain over the starting point is unknown (--seeds N measures it)."
"""The remark on a run without retrainings."""
_BEST_TRIALS = 3

Metrics = dict[str, float]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


Estimates = dict[str, Estimate]
_ARM_TITLES: dict[Literal["winner", "start"], str] = {"winner": "winner's parameters", "start": "starting point"}


class Retrainings(SeedsFile):
    """The winner and the starting point retrained under fresh seeds."""

    @property
    def warning(self) -> str | None:
        """A warning if the seeds are too few for a claim."""
        few = few_seeds(min(arm.trained for arm in self.arms.values()))
        return few and sentence(few)

    def comparison(self) -> Comparison:
        """Return the test figures of both arms."""
        first, second = (self.arms[arm].test for arm in _ARM_TITLES)
        return Comparison(titles=("winner", "starting point"), first=first, second=second, gain=self.gain)

    def model_rows(self, objective: str) -> list[tuple[str, float, float | None]]:
        """Return what could be delivered of each arm's seeds: title, and the objective on valid and test.

        That is the best model by its validation objective, and the mean score of all models. The starting point has as
        many seeds as the winner, so that both have the same luck.
        """
        better = min if METRIC_DIRECTIONS[objective] == "min" else max
        best, means = [], []
        for arm, title in _ARM_TITLES.items():
            measured = [m for m in self.models if m.arm == arm and objective in m.valid]
            if measured:
                model = better(measured, key=lambda model: model.valid[objective])
                best.append((f"{title}, best on valid", model.valid[objective], model.test.get(objective)))
            ensemble = self.ensembles.get(arm)
            if ensemble and objective in ensemble.valid:
                means.append((f"{title}, mean score", ensemble.valid[objective], ensemble.test.get(objective)))
        return best + means


class AgainstBaseline(_Part):
    """The winners of the two-stage search and of the one-stage baseline search, under the same seeds."""

    runs: dict[str, str]
    seeds: int
    two_stage: Estimates = Field(alias="two-stage")
    direct: Estimates
    gain: Estimates

    @property
    def warning(self) -> str | None:
        """A warning if the seeds are too few for a claim."""
        few = few_seeds(self.seeds)
        return few and sentence(few)

    def comparison(self, loss: str) -> Comparison:
        """Return the test figures of both searches. loss: title of the baseline's only loss."""
        titles = ("two stages", f"{loss} alone")
        return Comparison(titles=titles, first=self.two_stage, second=self.direct, gain=self.gain)


class Comparison(_Part):
    """Two models under the same seeds, and the paired difference of their metrics."""

    titles: tuple[str, str]
    first: Estimates
    second: Estimates
    gain: Estimates

    def rows(self) -> Iterator[tuple[str, Estimate, Estimate | None, Estimate | None]]:
        """Yield the title of each metric with its estimate for both models and for their difference."""
        for name, title in METRIC_TITLES.items():
            if name in self.first:
                yield title, self.first[name], self.second.get(name), self.gain.get(name)

    def text_rows(self) -> list[tuple[str, ...]]:
        """Return the rows as text."""
        return [(title, _spread(first), _spread(second), _interval(gain)) for title, first, second, gain in self.rows()]


def _spread(estimate: Estimate | None) -> str:
    """Return mean and deviation as text."""
    if estimate is None:
        return "-"
    return f"{estimate.mean:.4f}" + ("" if estimate.deviation is None else f" ± {estimate.deviation:.4f}")


def _interval(estimate: Estimate | None) -> str:
    """Return the signed mean and its interval as text."""
    if estimate is None or estimate.bounds is None:
        return "-"
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(estimate.mean, *estimate.bounds)


class Winner(_Part):
    """The winning trial, with the parameters that it inherits from its finalist."""

    trial: str
    params: dict[str, Any]


class TrialResult(_Part):
    """One of a stage's best trials."""

    trial: int
    objective: float | None
    metric: str
    params: dict[str, Any]


class FailureGroup(_Part):
    """Trials of a stage that failed or diverged for the same cause, with the last error."""

    cause: str
    trials: list[int]
    error: str | None


class StageSummary(_Part):
    """A stage that has trials."""

    trials: int
    states: dict[str, int]
    best: list[TrialResult]
    failures: list[FailureGroup]


class Cost(_Part):
    """The cost of some trials."""

    trial_seconds: float
    epochs: int
    utterance_passes: float

    @classmethod
    def of(cls, trials: Sequence[TrialRecord]) -> Cost:
        """Add the cost of the trials."""
        return cls(
            trial_seconds=sum(trial.seconds for trial in trials),
            epochs=sum(trial.epoch for trial in trials),
            utterance_passes=sum(trial.utterance_passes for trial in trials),
        )


class RunSummary(_Part):
    """A search so far. Before it has a winner, `winner` and `seeds` are None and the metrics are empty."""

    run: str
    uri: str
    report: str | None
    state: str
    command: str
    task: Task
    label_range: tuple[float, float]
    winner: Winner | None
    stages: dict[str, StageSummary]
    valid: Metrics
    test: Metrics
    ensemble: BestTrials | None = None
    """The mean score of the best trials; None if there is one, or an earlier release wrote the run."""
    test_seen_before_selection_ended: bool
    seeds: Retrainings | None
    worth: Worth | None = None
    """What the gain is worth, once the winner has been measured."""
    against_baseline: AgainstBaseline | None
    paper: Metrics
    not_comparable: list[str]
    baselines: list[Baseline]
    cost: Cost
    left: list[str] = []
    """Trials left unfinished after failures for causes outside of them."""
    excluded: list[str] = []
    """Hosts of nodes that got no more trials."""

    @classmethod
    def of(cls, view: RunView) -> RunSummary:
        """Summarise a run."""
        record, info, metrics = view.record, view.info, view.metrics or {}
        winner, page = info.winner, record.place / REPORT
        # The files of a run were validated when they were read.
        return cls.model_validate(
            {
                "run": str(record),
                "uri": record.place.uri,
                "report": str(page) if page.exists() else None,
                "state": info.state,
                "command": info.starts[-1].command,
                "task": view.task,
                "label_range": view.label_range,
                "winner": {"trial": winner, "params": view.winner_params} if winner else None,
                "stages": {
                    f"stage{stage}": _summarise_stage(view, trials) for stage, trials in view.trials.items() if trials
                },
                "valid": metrics.get("valid", {}),
                "test": metrics.get("test", {}),
                "ensemble": metrics.get("ensemble"),
                "test_seen_before_selection_ended": info.test_seen,
                "seeds": retrainings(record, winner) if winner else None,
                "worth": Worth.of(view),
                "against_baseline": against_baseline(record),
                "paper": metrics.get("paper", {}),
                "not_comparable": metrics.get("not_comparable", []),
                "baselines": metrics.get("baselines", []),
                "cost": Cost.of(view.all_trials),
                "left": info.left,
                "excluded": info.excluded,
            }
        )

    def as_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def objective(self) -> str:
        """The metric that chooses the winner."""
        return objective_name(2, self.task)

    @property
    def trials(self) -> int:
        """Number of trials of both stages."""
        return sum(stage.trials for stage in self.stages.values())

    def metric_columns(self) -> dict[str, Metrics]:
        """Return the winner's metrics and those to compare them with, by column title."""
        columns = {"valid": self.valid, "test": self.test}
        if self.ensemble:
            columns[f"ensemble of {len(self.ensemble.members)}, test"] = self.ensemble.test
        columns |= {f"{baseline_kind(base.name)}, test": base.test for base in self.baselines[:1]}
        return columns | ({"paper, test": self.paper} if self.paper else {})

    def metric_rows(self, names: Iterable[str] = METRIC_TITLES) -> list[tuple[str, list[float | None]]]:
        """Return name and values of each of the winner's metrics, the values in the order of `metric_columns`."""
        columns = self.metric_columns().values()
        return [(name, [column.get(name) for column in columns]) for name in names if name in self.test]

    def remarks(self) -> list[str]:
        """Return what a reader of the metrics has to know, a sentence each."""
        remarks = [f"Validation figures are optimistic: the best of {self.trials} trials."]
        if self.ensemble:
            *names, last = self.ensemble.members
            remarks.append(
                f"Ensemble: the mean score of {', '.join(names)} and {last}. They are the best on valid, so its "
                "validation figures are optimistic too. To use it: predict --ensemble."
            )
        if self.worth is not None:
            remarks += self.worth.sentences()
        if self.test_seen_before_selection_ended:
            remarks.append("Test was seen before selection ended: the search continued after test had been read.")
        if "acc_whole" in self.test:
            remarks.append(acc_whole_note(self.label_range))
        for base in self.baselines:
            remarks.append(f"Baseline: {base.name} of the same encoder, alpha {base.alpha:g} by validation.")
            winner, linear = self.test.get(self.objective), base.test.get(self.objective)
            if winner is not None and linear is not None and linear < winner:
                title, kind = METRIC_TITLES[self.objective], baseline_kind(base.name).capitalize()
                remarks.append(f"{kind} has the better test {title}: {linear:.4f} against {winner:.4f}.")
        if self.paper:
            reasons = "; ".join(self.not_comparable)
            remarks.append(f"Paper: not comparable: {reasons}." if reasons else "Paper: one seed.")
        if {"acc2_non0", "acc2_mmsa"} <= self.paper.keys():
            remarks.append(TWO_READINGS)
        if self.excluded:
            remarks.append(f"Nodes that got no more trials after failures there: {', '.join(self.excluded)}.")
        if self.left:
            remarks.append(
                f"Left unfinished after failures of nodes, storage or hub: {', '.join(self.left)}. The same command "
                "runs them again."
            )
        return remarks


def count_states(view: RunView, trials: Sequence[TrialRecord]) -> dict[str, int]:
    """Return the number of a run's trials in each state, by the state's name."""
    return dict(sorted(Counter(map(view.state_of, trials)).items()))


def _summarise_stage(view: RunView, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    metric = view.objective(trials[0].stage)
    return {
        "trials": len(trials),
        "states": count_states(view, trials),
        "best": [
            {"trial": trial.number, "objective": trial.objective, "metric": metric, "params": trial.params}
            for trial in rank(trials)[:_BEST_TRIALS]
        ],
        "failures": [
            {"cause": cause, "trials": [trial.number for trial in failed], "error": failed[-1].error}
            for cause, failed in failures_by_cause(trials).items()
        ],
    }
