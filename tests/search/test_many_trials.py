"""Searches of many trials: which of them TPE's model is built of."""

from __future__ import annotations

import random
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers._tpe import sampler as tpe
from optuna.trial import TrialState

from grcf_ray.search import searcher
from grcf_ray.search.searcher import CONSIDERED, FeasibleTPE

SPACE = {"x": FloatDistribution(0.0, 1.0)}
RUNNING = 7


def study_of(ended: int, direction: str = "maximize", complete: float = 0.2) -> optuna.Study:
    """A study whose first trials run; of the others some are complete and most pruned, some without a value."""
    rng = random.Random(ended)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction=direction)
    for _ in range(RUNNING):
        study.add_trial(optuna.trial.create_trial(params={"x": 0.5}, distributions=SPACE, state=TrialState.RUNNING))
    for _ in range(ended):
        value = rng.random()
        how: dict[str, Any] = {"state": TrialState.PRUNED, "intermediate_values": {rng.randint(1, 3): value}}
        if rng.random() < complete:
            how = {"state": TrialState.COMPLETE, "value": value}
        elif rng.random() < 0.1:
            how["intermediate_values"] = {}
        study.add_trial(optuna.trial.create_trial(params={"x": value}, distributions=SPACE, **how))
    return study


def considered(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int], dict[str, Any]]:
    """Return the numbers of the good and the other trials of the model behind a proposal, and the proposal."""
    split, seen = tpe._split_trials, []

    def spy(*arguments: Any) -> Any:
        seen.append(split(*arguments))
        return seen[-1]

    monkeypatch.setattr(tpe, "_split_trials", spy)
    sampler = FeasibleTPE(SPACE, lambda params: True, n_startup_trials=4, seed=1)
    proposal = sampler._sample(study, optuna.trial.create_trial(state=TrialState.WAITING), SPACE)
    monkeypatch.undo()
    ((good, others),) = seen
    return [trial.number for trial in good], [trial.number for trial in others], proposal


@pytest.mark.parametrize(("direction", "complete"), [("maximize", 0.2), ("minimize", 0.2), ("minimize", 0.005)])
def test_a_model_of_many_trials_has_the_good_and_the_newest_ones(
    direction: str, complete: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(3 * CONSIDERED, direction, complete)
    good, others, _ = considered(study, monkeypatch)
    monkeypatch.setattr(searcher, "CONSIDERED", 10**6)
    all_good, all_others, _ = considered(study, monkeypatch)
    assert good == all_good and len(good) == 25
    assert len(good) + len(others) == CONSIDERED + RUNNING
    assert others[:RUNNING] == list(range(RUNNING))
    assert others[RUNNING:] == all_others[-(CONSIDERED - len(good)) :]


def test_the_proposals_of_a_smaller_search_are_those_of_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an earlier run proposes what it would have proposed."""
    study = study_of(CONSIDERED)
    proposal = considered(study, monkeypatch)
    monkeypatch.setattr(FeasibleTPE, "_sample", optuna.samplers.TPESampler._sample)
    assert considered(study, monkeypatch) == proposal
