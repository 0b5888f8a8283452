"""What is said of scored rows: the score, the group or class that it is of, and how far other seeds' models spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from grcf_ray.data.features import LABEL_DECIMALS
from grcf_ray.data.schema import SPLITS
from grcf_ray.metrics import split_metrics
from grcf_ray.train.export import SavedModel
from grcf_ray.train.objectives import ordinal_groups


def scored(
    table: pa.Table, saved: SavedModel, retrained: Sequence[SavedModel] = (), *, with_text: bool = False
) -> pa.Table:
    """The rows' id, split and label, as far as the table has them, and what the models make of them.

    Regression: `score` in label units, and `group`, the one of the model's ordinal groups that
    `OrdinalGroups.nearest` names it after, by its edges. Classification: `score`, the probability of the positive
    class, its `logit`, and as `group` the class that is the likelier: 1 where the logit is above 0, as accuracy has it.
    retrained: the same settings trained under other seeds; `seeds_mean` and, of two or more, `seeds_deviation`
    (n - 1) are those of their scores.
    """
    raw_N = saved.score(table)
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
    """The rows that have labels among those that are scored part by part, and the metrics of their scores."""

    def __init__(self, saved: SavedModel) -> None:
        self._saved = saved
        self._parts: list[tuple[NDArray[np.float64], NDArray[np.float64], list[str | None]]] = []
        self._rows = 0

    def add(self, answer: pa.Table) -> None:
        """Take in what `scored` gave."""
        self._rows += answer.num_rows
        if "label" not in answer.column_names:
            return
        label_N = np.round(answer["label"].to_numpy().astype(np.float64), LABEL_DECIMALS)
        raw_N = answer["logit" if "logit" in answer.column_names else "score"].to_numpy()
        has_N = np.isfinite(label_N)
        split_N = answer["split"].to_pylist() if "split" in answer.column_names else [None] * len(label_N)
        self._parts.append((raw_N[has_N], label_N[has_N], [split_N[row] for row in np.flatnonzero(has_N)]))

    def metrics(self) -> tuple[dict[str, dict[str, float]], list[str]]:
        """The metrics by split, or under `all` where not every row is of a known one; and what is to be said of them.

        None where no row has a label, or one lies outside the model's range: it is on another scale then.
        """
        if not sum(len(label_N) for _, label_N, _ in self._parts):
            return {}, []
        score_N, label_N = (np.concatenate([part[index] for part in self._parts]) for index in (0, 1))
        split_N = np.array([split for *_, splits in self._parts for split in splits], object)
        low, high = self._saved.label_range
        if label_N.min() < low or label_N.max() > high:
            found = f"[{label_N.min():g}, {label_N.max():g}]"
            return {}, [f"no metrics: the labels lie in {found}, and those of the model in [{low:g}, {high:g}]"]
        notes = []
        if len(label_N) < self._rows:
            notes.append(f"metrics are those of the {len(label_N)} rows of {self._rows} that have labels")
        known = all(split in SPLITS for split in split_N)
        names = [split for split in SPLITS if split in split_N] if known else ["all"]
        return {
            name: self._of(score_N[split_N == name], label_N[split_N == name]) if known else self._of(score_N, label_N)
            for name in names
        }, notes

    def _of(self, score_N: NDArray[np.float64], label_N: NDArray[np.float64]) -> dict[str, float]:
        low, high = self._saved.label_range
        found = split_metrics(
            score_N, label_N, protocol=self._saved.protocol, limit=(high - low) / 2, center=(low + high) / 2
        )
        return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def _shown(raw_N: NDArray[np.float64], saved: SavedModel) -> NDArray[np.float64]:
    """Scores as people read them: of two classes the probability of the positive one."""
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
