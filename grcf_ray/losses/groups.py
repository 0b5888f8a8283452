"""Ordinal groups of sentiment labels and the distance between two labels, section 3.2 and eq. 6."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grcf_ray.errors import ConfigError

_PAPER_LIMIT = 3.0
_STEPS_PER_UNIT = 1e4

# On the paper's range [-3, 3]. It prints the edges of "overlap,5" and the width of "strict,5".
_INTERVALS: dict[str, tuple[tuple[float, float], ...]] = {
    "overlap,5": ((-3.0, -1.5), (-2.0, 0.0), (-0.5, 0.5), (0.0, 2.0), (1.5, 3.0)),
    "overlap,3": ((-3.0, -0.5), (-1.0, 1.0), (0.5, 3.0)),
    "overlap,7": ((-3.0, -2.0), (-2.5, -1.0), (-1.5, 0.0), (-0.5, 0.5), (0.0, 1.5), (1.0, 2.5), (2.0, 3.0)),
    "strict,5": ((-3.0, -1.8), (-1.8, -0.6), (-0.6, 0.6), (0.6, 1.8), (1.8, 3.0)),
}


@dataclass(frozen=True, kw_only=True)
class OrdinalGroups:
    """K intervals of the label axis, in ascending order; a label belongs to each interval that contains it.

    Labels are offsets from the centre of their range. Labels and edges are rounded to 1e-4 and compared in float64: a
    float32 label of 1.8 is less than 1.8, but lies on that edge.
    """

    name: str
    """Name in the configuration, such as `overlap,5`."""
    intervals: tuple[tuple[float, float], ...]
    """Lower and upper edge of each group, in label units."""
    half_open: bool
    """Whether an upper edge belongs to the next group only, [low, high). The last group is always closed."""

    @classmethod
    def named(cls, name: str, limit: float = _PAPER_LIMIT) -> OrdinalGroups:
        """Return the groups called `name`, scaled from the paper's range [-3, 3] to [-limit, limit].

        With the default limit the edges are the paper's. ConfigError if the name is unknown, or the limit not positive.
        """
        if name not in _INTERVALS:
            nearest = difflib.get_close_matches(name, _INTERVALS, n=1, cutoff=0.0)[0]
            choices = ", ".join(f"'{choice}'" for choice in _INTERVALS)
            raise ConfigError(f"unknown groups '{name}': choose from {choices}. Did you mean '{nearest}'?")
        if not (math.isfinite(limit) and limit > 0):
            raise ConfigError(f"groups '{name}': the label range's limit must be positive, got {limit}")
        scale = limit / _PAPER_LIMIT
        intervals = tuple((low * scale, high * scale) for low, high in _INTERVALS[name])
        return cls(name=name, intervals=intervals, half_open=name.startswith("strict"))

    def membership(self, label_B: Tensor) -> Tensor:
        """Return which groups contain each label, g(s): bool [B, K].

        label_B: [B] in label units. ValueError if no group contains a label (or if it is NaN).
        """
        step_B1 = (label_B.double() * _STEPS_PER_UNIT).round().unsqueeze(-1)
        edges_K2 = torch.tensor(self.intervals, dtype=torch.float64, device=label_B.device)
        low_K, high_K = (edges_K2 * _STEPS_PER_UNIT).round().unbind(-1)
        if self.half_open:
            # In whole steps [low, high) is [low, high - 1].
            high_K = torch.cat([high_K[:-1] - 1, high_K[-1:]])
        member_BK = (low_K <= step_B1) & (step_B1 <= high_K)
        outside_B = ~member_BK.any(-1)
        if bool(outside_B.any()):
            value = label_B[outside_B][0].item()
            span = f"[{self.intervals[0][0]:g}, {self.intervals[-1][1]:g}]"
            raise ValueError(f"label {value:g} lies outside the groups '{self.name}', which span {span}")
        return member_BK

    def nearest(self, label_B: Tensor) -> Tensor:
        """Return the nearest group of each label or score: int64 [B].

        label_B: [B] in label units; values beyond the groups count as lying on the outer edge. Among the groups that
        contain a value, the one with the nearest middle counts; of two equally near, the one nearer the centre of the
        range.
        """
        held_B = label_B.double().clamp(self.intervals[0][0], self.intervals[-1][1])
        step_B1 = (held_B * _STEPS_PER_UNIT).round().long().unsqueeze(-1)
        edges_K2 = torch.tensor(self.intervals, dtype=torch.float64, device=label_B.device)
        # Twice the middle, which is a whole number of steps.
        middle_K = (edges_K2 * _STEPS_PER_UNIT).round().long().sum(-1)
        away_BK = (2 * step_B1 - middle_K).abs().masked_fill(~self.membership(held_B), torch.iinfo(torch.int64).max)
        nearest_BK = away_BK == away_BK.amin(-1, keepdim=True)
        return middle_K.abs().masked_fill(~nearest_BK, torch.iinfo(torch.int64).max).argmin(-1)

    def titles(self, center: float = 0.0) -> tuple[str, ...]:
        """Return the groups by their edges on labels with this centre, such as `[-0.5, 0.5]` or `[-0.6, 0.6)`."""
        last = len(self.intervals) - 1
        return tuple(
            f"[{center + low:.4g}, {center + high:.4g}{')' if self.half_open and k < last else ']'}"
            for k, (low, high) in enumerate(self.intervals)
        )

    def distance(self, label_i_P: Tensor, label_j_P: Tensor) -> Tensor:
        """Return the semantic distance of each pair of labels, eq. 6: int64 [P]. See `membership_distance`."""
        return self.membership_distance(self.membership(label_i_P), self.membership(label_j_P))

    @staticmethod
    def membership_distance(member_i_PK: Tensor, member_j_PK: Tensor) -> Tensor:
        """Return the semantic distance of each pair of rows of `membership`, eq. 6: int64 [P].

        0 if the two share any group, else the maximum of |Ga - Gb| over their groups. The printed formula alone would
        put -1.8 and -1.6 one group apart, but the text of the paper says 0.
        """
        first_i_P, last_i_P = _first_and_last(member_i_PK)
        first_j_P, last_j_P = _first_and_last(member_j_PK)
        farthest_P = torch.maximum(last_i_P - first_j_P, last_j_P - first_i_P)
        shared_P = (member_i_PK & member_j_PK).any(-1)
        return farthest_P.masked_fill(shared_P, 0)


def _first_and_last(member_PK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the first and of the last group of each row: int64 [P] each."""
    groups = member_PK.shape[-1]
    index_K = torch.arange(groups, device=member_PK.device)
    return index_K.where(member_PK, groups).amin(-1), index_K.where(member_PK, -1).amax(-1)
