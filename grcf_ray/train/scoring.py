"""Scores of rows as users see them: score, group or class, and spread over seeds; and their metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from grcf_ray.config import Task
from grcf_ray.data.schema import SPLITS, labels_of
from grcf_ray.train.export import SavedModel
from grcf_ray.train.objectives import ordinal_groups


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Models of one search whose scores are averaged, the best one first."""

    members: Sequence[SavedModel]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that the models require; they may use different modalities."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.inputs))

    def score(self, rows: Any) -> NDArray[np.float64]:
        """Return the mean scores [N], as `mean_score` does, of rows as `SavedModel.score` takes them."""
        return mean_score([member.score(rows) for member in self.members], self.members[0].task)


def mean_score(scores: Sequence[NDArray[np.float64]], task: Task) -> NDArray[np.float64]:
    """Return the mean [N] of several models' scores [N] of the same rows.

    Classification: the logit of the mean probability. Users see probabilities, and a model that is too sure of itself
    has bounded influence on their mean, but not on the mean logit.
    """
    score_SN = np.stack(scores)
    mean_N: NDArray[np.float64]
    if task == "regression":
        mean_N = score_SN.mean(axis=0)
    else:
        # log sum p - log sum (1 - p), which stays finite where a probability rounds to 1.
        positive_N = np.logaddexp.reduce(-np.logaddexp(0, -score_SN), axis=0)
        mean_N = positive_N - np.logaddexp.reduce(-np.logaddexp(0, score_SN), axis=0)
    return mean_N


def scored(
    table: pa.Table,
    saved: SavedModel,
    retrained: Sequence[SavedModel] = (),
    *,
    ensemble: Ensemble | None = None,
    with_text: bool = False,
) -> pa.Table:
    """Return id, split and label of the rows, if the table has them, and their scores.

    Regression: `score` in label units, and `group`, the edges of the nearest ordinal group (`OrdinalGroups.nearest`).
    Classification: `score`, the probability of the positive class; its `logit`; and `group`, the predicted class, 1 if
    the logit is above 0.

    ensemble: the models whose mean score takes the place of that of `saved`.

    retrained: models with the same settings and other seeds. `seeds_mean` is the mean of their scores and, for two or
    more, `seeds_deviation` the deviation (n - 1).
    """
    raw_N = (ensemble or saved).score(table)
    kept = ("id", "split", "label", *(["text"] if with_text else []))
    columns = {name: table[name] for name in kept if name in table.column_names}
    columns["score"] = pa.array(_shown(raw_N, saved))
    if saved.task == "classification":
        columns["logit"] = pa.array(raw_N)
    columns["group"] = pa.array(_groups(raw_N, saved), pa.string())
    if retrained:
        score_SN = np.stack([_shown(other.score(table), other) for other in retrained])
        columns["seeds_mean"] = pa.array(score_SN.mean(axis=0))
        if len(retrained) > 1:
            columns["seeds_deviation"] = pa.array(score_SN.std(axis=0, ddof=1))
    return pa.table(columns)


class Labelled:
    """Metrics of scored rows that have labels, collected part by part."""

    def __init__(self, saved: SavedModel) -> None:
        self._saved = saved
        self._parts: list[tuple[NDArray[np.float64], NDArray[np.float64], list[str | None]]] = []
        self._rows = 0

    def add(self, answer: pa.Table) -> None:
        """Add the rows of a table that `scored` returned."""
        self._rows += answer.num_rows
        if "label" not in answer.column_names:
            return
        label_N = labels_of(answer)
        raw_N = answer["logit" if "logit" in answer.column_names else "score"].to_numpy()
        has_N = np.isfinite(label_N)
        split_N = answer["split"].to_pylist() if "split" in answer.column_names else [None] * len(label_N)
        self._parts.append((raw_N[has_N], label_N[has_N], [split_N[row] for row in np.flatnonzero(has_N)]))

    def metrics(self) -> tuple[dict[str, dict[str, float]], list[str]]:
        """Return the metrics by split, and notes about them.

        If a row has no known split, all metrics are under `all`. There are none if no row has a label, or if a label
        lies outside the model's range, and so on another scale.
        """
        if not sum(len(label_N) for _, label_N, _ in self._parts):
            return {}, []
        score_N, label_N = (np.concatenate([part[index] for part in self._parts]) for index in (0, 1))
        split_N = np.array([split for *_, splits in self._parts for split in splits], object)
        low, high = self._saved.label_range
        if label_N.min() < low or label_N.max() > high:
            span = f"[{label_N.min():g}, {label_N.max():g}]"
            return {}, [f"no metrics: the labels lie in {span}, and those of the model in [{low:g}, {high:g}]"]
        notes = []
        if len(label_N) < self._rows:
            notes.append(f"metrics are those of the {len(label_N)} rows of {self._rows} that have labels")
        if not all(split in SPLITS for split in split_N):
            split_N[:] = "all"
        names = [name for name in (*SPLITS, "all") if name in split_N]
        metrics = self._saved.metrics
        return {name: metrics(score_N[split_N == name], label_N[split_N == name]) for name in names}, notes


def _shown(raw_N: NDArray[np.float64], saved: SavedModel) -> NDArray[np.float64]:
    """Return scores as users see them: for classification the probability of the positive class."""
    if saved.task == "regression":
        return raw_N
    probability_N: NDArray[np.float64] = torch.sigmoid(torch.from_numpy(raw_N)).numpy()
    return probability_N


def _groups(raw_N: NDArray[np.float64], saved: SavedModel) -> list[str]:
    if saved.task == "classification":
        return ["1" if positive else "0" for positive in raw_N > 0]
    low, high = saved.label_range
    center = (low + high) / 2
    groups = ordinal_groups(saved.config.ranking, (high - low) / 2)
    titles = groups.titles(center)
    return [titles[group] for group in groups.nearest(torch.from_numpy(raw_N - center)).tolist()]
