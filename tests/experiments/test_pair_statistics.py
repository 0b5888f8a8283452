from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from grcf_ray.experiments.pair_statistics import differing_pairs, fit_ols, permuted_p
from grcf_ray.statistics import rank_correlation


@pytest.mark.parametrize("label_N", [[0.4, -1.0, 0.4, 2.0, -1.0, 0.0], [], [0.0], [2.0] * 5])
def test_differing_pairs_are_those_of_a_plain_loop(label_N: list[float]) -> None:
    pairs_P2, total = differing_pairs(np.array(label_N), 100, seed=0)
    pairs = itertools.combinations(range(len(label_N)), 2)
    expected = {(i, j) if label_N[i] > label_N[j] else (j, i) for i, j in pairs if label_N[i] != label_N[j]}
    assert {(int(i), int(j)) for i, j in pairs_P2} == expected
    assert pairs_P2.shape == (total, 2) and total == len(expected)


def test_differing_pairs_are_drawn_without_repeating_and_evenly() -> None:
    label_N = np.round(np.random.default_rng(0).normal(size=20), 1)
    every, total = differing_pairs(label_N, 10_000, seed=0)
    known, drawn = {tuple(pair) for pair in every.tolist()}, []
    for seed in range(400):
        pairs_P2, count = differing_pairs(label_N, 40, seed=seed)
        drawn_pairs = [tuple(pair) for pair in pairs_P2.tolist()]
        assert count == total and len(set(drawn_pairs)) == 40 and set(drawn_pairs) <= known
        drawn += drawn_pairs
    counts = np.array([drawn.count(pair) for pair in known])
    assert stats.chisquare(counts).pvalue > 1e-3
    again, _ = differing_pairs(label_N, 40, seed=399)
    assert [tuple(pair) for pair in again.tolist()] == drawn_pairs


def test_ols_of_one_predictor_is_scipys() -> None:
    rng = np.random.default_rng(1)
    x_P = rng.normal(size=50)
    y_P = 2 + 0.3 * x_P + rng.normal(size=50)
    fit, expected = fit_ols(y_P, {"x": x_P}), stats.linregress(x_P, y_P)
    figures = {"coefficient": expected.slope, "error": expected.stderr, "p": expected.pvalue}
    assert {name: fit.terms["x"][name] for name in figures} == pytest.approx(figures)
    figures = {"coefficient": expected.intercept, "error": expected.intercept_stderr}
    assert {name: fit.terms["const"][name] for name in figures} == pytest.approx(figures)
    assert (fit.r2, fit.n) == (pytest.approx(expected.rvalue**2), 50)


def test_ols_of_two_predictors_worked_by_hand() -> None:
    """y = 1, 3, 4, 8 on the corners of a square, where X'X is diagonal: 4 times the identity.

    Coefficients 16/4, (-1+3-4+8)/4 and (-1-3+4+8)/4; the rest is 1, -1, -1, 1 times 0.5, its square sum 1 on one
    degree of freedom, so every standard error is sqrt(1/4); the spread about the mean is 26.
    """
    fit = fit_ols(np.array([1.0, 3, 4, 8]), {"a": np.array([-1.0, 1, -1, 1]), "b": np.array([-1.0, -1, 1, 1])})
    for name, coefficient in {"const": 4.0, "a": 1.5, "b": 2.0}.items():
        # With one degree of freedom t is Cauchy's.
        p = 1 - 2 * np.arctan(2 * coefficient) / np.pi
        expected = {"coefficient": coefficient, "error": 0.5, "t": 2 * coefficient, "p": p}
        assert fit.terms[name] == pytest.approx(expected)
    assert fit.r2 == pytest.approx(25 / 26)


def test_ols_refuses_what_it_cannot_tell_apart() -> None:
    y_P, x_P = np.array([1.0, 2, 4, 3]), np.array([0.0, 1, 2, 3])
    with pytest.raises(ValueError, match="constant"):
        fit_ols(y_P, {"x": np.full(4, 0.1)})
    with pytest.raises(ValueError, match="combination"):
        fit_ols(y_P, {"x": x_P, "twice": 2 * x_P + 1})
    with pytest.raises(ValueError, match="2 observations for 2"):
        fit_ols(y_P[:2], {"x": x_P[:2]})


def test_permuted_p_is_even_where_pairs_share_utterances_and_ols_is_not() -> None:
    """Weights of random utterance effects, predictors of others: no relation, though plain p are mostly small."""
    pairs_P2 = np.array(list(itertools.combinations(range(14), 2)))
    permuted, plain = [], []
    for trial in range(120):
        rng = np.random.default_rng(trial)
        effect_N, other_N = rng.normal(size=14), rng.normal(size=14)
        weight_P = effect_N[pairs_P2].sum(axis=1)

        def t_of(weight_P: np.ndarray, pairs_P2: np.ndarray, other_N: np.ndarray = other_N) -> np.ndarray:
            return np.array([fit_ols(weight_P, {"x": other_N[pairs_P2].sum(axis=1)}).terms["x"]["t"]])

        permuted += permuted_p(weight_P, pairs_P2, 14, t_of, seed=trial, permutations=39)
        plain.append(fit_ols(weight_P, {"x": other_N[pairs_P2].sum(axis=1)}).terms["x"]["p"])
    assert stats.kstest(np.array(permuted), "uniform").pvalue > 1e-3
    assert np.mean(np.array(permuted) <= 0.1) < 0.2 < np.mean(np.array(plain) <= 0.1)


def test_permuted_p_is_least_where_the_relation_is_there() -> None:
    pairs_P2 = np.array(list(itertools.combinations(range(14), 2)))
    own_N = np.random.default_rng(0).normal(size=14)

    def figures(weight_P: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
        return np.array([rank_correlation(weight_P, own_N[pairs_P2].sum(axis=1)), np.nan])

    p_values = permuted_p(own_N[pairs_P2].sum(axis=1), pairs_P2, 14, figures, seed=0, permutations=39)
    assert p_values == [pytest.approx(1 / 40), None]
