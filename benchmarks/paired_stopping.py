"""Early stopping by rungs, as ASHA, with a margin for the noise of the validation utterances."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from policies import SeenTable
from ray import tune

from grcf_ray.config import SearchConfig
from grcf_ray.search.record import TrialRecord
from grcf_ray.search.simulation import FedSearch, FedTrial
from grcf_ray.search.trial_table import KnownTrial
from grcf_ray.train.curve import DIRECTIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """When a trial is stopped."""

    best_so_far: bool = False
    """Whether a trial is judged by its best epoch so far instead of the current one."""
    margin: float = 0.0
    """Paired standard errors over validation utterances by which a stopped trial is worse than the cut-off."""
    grace: float = 0.0
    """Share of the epochs before the first rung; at least one epoch."""


@dataclasses.dataclass(frozen=True)
class _OnRung:
    value: float
    """The larger, the better."""
    known: KnownTrial
    epoch: int
    """Index of the epoch that the value is of."""


class PairedHalving:
    """ASHA with a margin: a trial is stopped at a rung if it is worse than the cut-off by more than the margin.

    The cut-off is ASHA's: the percentile of the values of earlier trials on the rung. The standard error is that of the
    paired difference to the trial nearest to the cut-off. Without a margin, the decisions are those of Ray's
    `ASHAScheduler`. A trial is stopped only while another one waits for its slot.

    label_N: of the validation utterances.
    """

    def __init__(
        self,
        rule: StoppingRule,
        *,
        stage: Literal[1, 2],
        epochs: int,
        factor: float,
        table: SeenTable,
        label_N: NDArray[np.float64],
        waiting: Callable[[], bool],
    ) -> None:
        self._rule, self._stage, self._factor = rule, stage, factor
        self._table, self._label_N, self._waiting = table, label_N, waiting
        self._known: dict[int, KnownTrial] = {}
        first = max(1, math.ceil(rule.grace * epochs))
        count = int(math.log(epochs / first) / math.log(factor) + 1)
        self._rungs: dict[int, list[_OnRung]] = {math.ceil(first * factor**k): [] for k in range(count)}

    def on_trial_add(self, controller: Any, trial: FedTrial) -> None:
        """Note the results of a new trial, the last one that was drawn."""
        self._known[trial.config["number"]] = self._table.drawn[-1][1]

    def on_trial_result(self, controller: Any, trial: FedTrial, result: dict[str, Any]) -> str:
        """Decide on a trial."""
        rung = self._rungs.get(result["epoch"])
        if rung is None:
            return tune.schedulers.TrialScheduler.CONTINUE
        here = self._value(self._known[trial.config["number"]], result["epoch"])
        worse = bool(rung) and self._worse(here, rung)
        rung.append(here)
        if worse and self._waiting():
            return tune.schedulers.TrialScheduler.STOP
        return tune.schedulers.TrialScheduler.CONTINUE

    def on_trial_complete(self, controller: Any, trial: FedTrial, result: dict[str, Any]) -> None:
        """Do nothing: the rungs are full."""

    def _value(self, known: KnownTrial, epoch: int) -> _OnRung:
        value_E = known.values_E[:epoch] * (-1 if DIRECTIONS[self._stage] == "min" else 1)
        at = int(value_E.argmax()) if self._rule.best_so_far else epoch - 1
        return _OnRung(float(value_E[at]), known, at)

    def _worse(self, here: _OnRung, rung: list[_OnRung]) -> bool:
        cutoff = float(np.percentile([other.value for other in rung], 100 * (1 - 1 / self._factor)))
        nearest = min(rung, key=lambda other: abs(other.value - cutoff))
        margin = self._rule.margin and self._rule.margin * self._standard_error(here, nearest)
        return cutoff - here.value > margin

    def _standard_error(self, here: _OnRung, other: _OnRung) -> float:
        first_N, second_N = (trial.known.error["valid"][trial.epoch] for trial in (here, other))
        if self._stage == 1:
            return accuracy_error(first_N + self._label_N, second_N + self._label_N, self._label_N)
        return mean_error(np.abs(first_N) - np.abs(second_N))


def mean_error(difference_N: NDArray[np.float64]) -> float:
    """Return the standard error of the mean."""
    return float(difference_N.std(ddof=1) / len(difference_N) ** 0.5)


def accuracy_error(first_N: NDArray[np.float64], second_N: NDArray[np.float64], label_N: NDArray[np.float64]) -> float:
    """Return the standard error, over utterances, of the difference between the PairwiseAcc of two models' scores [N].

    PairwiseAcc is a mean over pairs: an utterance is in two of N of them (Hoeffding 1948).
    """
    wrong_N, other_N = (_wrong_pairs(score_N, label_N) for score_N in (first_N, second_N))
    return 2 * mean_error(wrong_N - other_N)


def _wrong_pairs(score_N: NDArray[np.float64], label_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each utterance's wrongly ordered pairs over the mean number of pairs; the mean is 1 - PairwiseAcc."""
    order_NN, known_NN = (np.sign(value_N[:, None] - value_N) for value_N in (score_N, label_N))
    comparable_NN = known_NN != 0
    wrong_N: NDArray[np.float64] = (comparable_NN & (order_NN != known_NN)).sum(axis=1) / comparable_NN.sum(
        axis=1
    ).mean()
    return wrong_N


def stopped_by(rule: StoppingRule, table: SeenTable, label_N: NDArray[np.float64]) -> type[FedSearch]:
    """Return a kind of search with this rule."""

    def ruled(
        search: SearchConfig,
        *,
        stage: Literal[1, 2],
        epochs: int,
        trials: Sequence[TrialRecord],
        waiting: Callable[[], bool],
    ) -> Any:
        factor = search.reduction_factor
        return PairedHalving(
            rule, stage=stage, epochs=epochs, factor=factor, table=table, label_N=label_N, waiting=waiting
        )

    class RuledSearch(FedSearch):
        scheduler = staticmethod(ruled)

    return RuledSearch
