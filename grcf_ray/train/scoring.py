"""What is said of scored rows: the score, the group or class that it is of, and how far other seeds' models spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from grcf_ray.train.export import SavedModel
from grcf_ray.train.objectives import ordinal_groups

__all__ = ["scored"]


def scored(table: pa.Table, saved: SavedModel, retrained: Sequence[SavedModel] = ()) -> pa.Table:
    """The rows' id, split and label, as far as the table has them, and what the models make of them.

    Regression: `score` in label units, and `group`, the one of the model's ordinal groups that
    `OrdinalGroups.nearest` names it after, by its edges. Classification: `score`, the probability of the positive
    class, its `logit`, and as `group` the class that is the likelier: 1 where the logit is above 0, as accuracy has it.
    retrained: the same settings trained under other seeds; `seeds_mean` and, of two or more, `seeds_deviation`
    (n - 1) are those of their scores.
    """
    raw_N = saved.score(table)
    columns = {name: table[name] for name in ("id", "split", "label") if name in table.column_names}
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
