"""The parts of the study of search policies: what a search sees, how it starts, and when it stops a trial."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from paired_stopping import PairedHalving, StoppingRule, accuracy_error, mean_error
from policies import SeenTable, folded, important, over_three_epochs, portfolio
from policies import averaged as with_averaged_weights

from grcf_ray.config import SearchConfig
from grcf_ray.metrics import pairwise_accuracy
from grcf_ray.search.scheduler import build_scheduler
from grcf_ray.search.searcher import distributions
from grcf_ray.search.space import load_space, shipped_spaces
from grcf_ray.search.trial_table import KnownTrial
from tests.search.made_trials import LABELS, N_VALID

if TYPE_CHECKING:
    from grcf_ray.search.trial_table import TrialTable

EPOCHS = 9


def test_what_a_search_sees_of_a_trial(table: TrialTable) -> None:
    known = table.recorded(2)[0].known
    values = known.objective["valid"]
    means = over_three_epochs(known).objective["valid"]
    assert means[:4].tolist() == pytest.approx(
        [values[0], values[:2].mean(), values[:3].mean(), values[1:4].mean()], abs=1e-12
    )
    seen = with_averaged_weights(known)
    assert seen.objective["test"].tolist() == [*known.objective["test"][:3], *[known.objective["test"][4]] * 2]
    np.testing.assert_array_equal(seen.error["valid"][3], known.error["valid"][4])


def test_folds_cost_as_many_trainings_and_keep_the_best_model_of_each_epoch(table: TrialTable) -> None:
    models = [trial.known for trial in table.recorded(1)[:3]]
    trial = folded(models, np.random.default_rng(0))
    valid_KC = np.array([model.objective["valid"] for model in models])
    np.testing.assert_allclose(trial.objective["valid"], valid_KC.mean(axis=0))
    assert trial.passes_E.tolist() == [3.0] * 3
    for epoch, best in enumerate(valid_KC.argmax(axis=0)):
        assert trial.objective["test"][epoch] == models[best].objective["test"][epoch]
    models = [trial.known for trial in table.recorded(2)[:3]]
    trials = [folded(models, np.random.default_rng(seed)) for seed in range(500)]
    figures = np.array([trial.objective["valid"] for trial in trials])
    np.testing.assert_allclose(
        figures.mean(axis=0), np.mean([model.objective["valid"] for model in models], axis=0), atol=0.02
    )
    # Three independent means of resampled utterances.
    sizes = [np.abs(model.error["valid"][-1]) for model in models]
    assert figures[:, -1].std() == pytest.approx((sum(size.var() / N_VALID for size in sizes) / 9) ** 0.5, rel=0.15)


def test_a_smaller_space_keeps_what_matters(table: TrialTable) -> None:
    # The errors depend on the rate alone.
    assert important(table, 2, 1) == ["stage2.head_lr"]
    assert len(important(table, 2, 3)) == 2
    seen = SeenTable(table)
    fixed = seen.draw(2, {"stage2.head_lr": 1e-3}, np.random.default_rng(0), 0.8)
    whole = table.draw(2, {"stage2.head_lr": 1e-3, "stage2.fusion_dropout": 0.1}, np.random.default_rng(0), 0.8)
    np.testing.assert_array_equal(fixed.values_E, whole.values_E)


@pytest.mark.parametrize("name", ["mosi", "mosi_cpu", "mosei"])
def test_known_optima_lie_in_the_space(name: str) -> None:
    space = load_space(shipped_spaces()[name])
    for stage in (1, 2):
        dimensions = space.dimensions(stage)
        points = portfolio(distributions(dimensions), space.start(stage))
        assert 3 <= len(points) <= 6
        for number, point in enumerate(points):
            assert point.keys() == dimensions.keys()
            assert all(-1e-9 <= dimensions[path].place_of(value) <= 1 + 1e-9 for path, value in point.items())
            assert point not in [space.start(stage), *points[:number]]


def trials_of(stage: Literal[1, 2], count: int) -> list[KnownTrial]:
    """Trials that learn, some more than others."""
    rng, trials = np.random.default_rng(stage), []
    label_N = LABELS[:N_VALID]
    for quality in rng.uniform(0.5, 1.5, count):
        sizes = quality * np.linspace(1.0, 0.5, EPOCHS + 1)
        score_CN = np.array([label_N + size * rng.normal(size=N_VALID) for size in sizes])
        figures = [
            pairwise_accuracy(score_N, label_N) if stage == 1 else np.abs(score_N - label_N).mean()
            for score_N in score_CN
        ]
        trials.append(
            KnownTrial(
                stage=stage,
                objective={"valid": np.array(figures)},
                seconds_E=np.ones(EPOCHS),
                passes_E=np.ones(EPOCHS),
                error={"valid": score_CN - label_N},
            )
        )
    return trials


def decisions(scheduler: Any, trials: list[KnownTrial], drawn: list[Any]) -> list[int]:
    """Return the epoch at which each trial stops, if they run one after another."""
    ends = []
    for number, known in enumerate(trials):
        trial = SimpleNamespace(number=number, config={"number": number})
        drawn.append(({}, known))
        scheduler.on_trial_add(None, trial)
        end = EPOCHS
        for epoch in range(1, EPOCHS):
            result = {"epoch": epoch, "objective": known.values_E[epoch - 1]}
            if scheduler.on_trial_result(None, trial, result) == "STOP":
                end = epoch
                break
        ends.append(end)
    return ends


def ruled(rule: StoppingRule, stage: Literal[1, 2], drawn: list[Any], *, waiting: bool = True) -> PairedHalving:
    table: Any = SimpleNamespace(drawn=drawn)
    return PairedHalving(
        rule,
        stage=stage,
        epochs=EPOCHS,
        factor=3.0,
        table=table,
        label_N=LABELS[:N_VALID],
        waiting=lambda: waiting,
    )


@pytest.mark.parametrize("stage", [1, 2])
def test_without_a_margin_the_rule_is_ashas(stage: Literal[1, 2]) -> None:
    trials = trials_of(stage, 40)
    drawn: list[Any] = []
    asha = build_scheduler(
        SearchConfig(pruning=True, grace_epochs=1, reduction_factor=3.0), stage=stage, epochs=EPOCHS, trials=[]
    )
    ours = decisions(ruled(StoppingRule(), stage, drawn), trials, drawn)
    assert ours == decisions(asha, trials, [])
    assert min(ours) == 1 and 3 in ours and max(ours) == EPOCHS
    assert set(decisions(ruled(StoppingRule(), stage, drawn, waiting=False), trials, drawn)) == {EPOCHS}


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("rule", [StoppingRule(margin=1.0), StoppingRule(best_so_far=True, margin=0.5, grace=0.2)])
def test_a_trial_stops_if_it_is_worse_by_more_than_the_margin(rule: StoppingRule, stage: Literal[1, 2]) -> None:
    trials = trials_of(stage, 40)
    sign, label_N = (1 if stage == 1 else -1), LABELS[:N_VALID]
    rungs: dict[int, list[tuple[float, Any]]] = {epoch: [] for epoch in ((2, 6) if rule.grace else (1, 3, 9))}
    expected = []
    for known in trials:
        for epoch, rung in rungs.items():
            values = [sign * value for value in known.values_E[:epoch]]
            at = int(np.argmax(values)) if rule.best_so_far else epoch - 1
            error_N = known.error["valid"][at]
            stop = False
            if rung and epoch < EPOCHS:
                cutoff = np.percentile([value for value, _ in rung], 100 * 2 / 3)
                _, other_N = min(rung, key=lambda entry: abs(entry[0] - cutoff))
                if stage == 1:
                    margin = accuracy_error(error_N + label_N, other_N + label_N, label_N)
                else:
                    margin = np.std(np.abs(error_N) - np.abs(other_N), ddof=1) / N_VALID**0.5
                stop = cutoff - values[at] > rule.margin * margin
            rung.append((values[at], error_N))
            if stop:
                expected.append(epoch)
                break
        else:
            expected.append(EPOCHS)
    drawn: list[Any] = []
    ends = decisions(ruled(rule, stage, drawn), trials, drawn)
    assert ends == expected
    assert min(ends) == min(rungs) and max(ends) == EPOCHS
    plain = decisions(ruled(StoppingRule(), stage, drawn), trials, drawn)
    assert sum(ends) > sum(plain)


def test_the_standard_errors_are_those_of_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    label_N = np.round(rng.uniform(-3, 3, 200), 1)
    first_N, second_N = (label_N + size * rng.normal(size=200) for size in (1.5, 2.0))
    drawn = rng.integers(200, size=(600, 200))
    accuracies = [[pairwise_accuracy(score_N[d], label_N[d]) for score_N in (first_N, second_N)] for d in drawn]
    by_draw = np.subtract(*np.transpose(accuracies))
    assert accuracy_error(first_N, second_N, label_N) == pytest.approx(by_draw.std(), rel=0.12)
    difference_N = np.abs(first_N - label_N) - np.abs(second_N - label_N)
    assert mean_error(difference_N) == pytest.approx(difference_N[drawn].mean(axis=1).std(), rel=0.12)
