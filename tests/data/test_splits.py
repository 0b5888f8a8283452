from __future__ import annotations

import numpy as np
import pytest

from grcf_ray.data.splits import draw_valid, grouped, stratified
from grcf_ray.errors import DataError

IDS = [f"u{row}" for row in range(400)]
LABELS = np.linspace(-3, 3, 400)


def test_stratified_takes_one_of_every_block_of_neighbours_in_label() -> None:
    part_N = stratified(IDS, LABELS, block=8)
    assert all(sorted(part_N[start : start + 8]) == list(range(8)) for start in range(0, 400, 8))


def test_drawn_rows_do_not_depend_on_the_order_of_the_file() -> None:
    order = np.random.default_rng(0).permutation(400)
    for groups in (None, [f"v{row // 7}" for row in range(400)]):
        there, _ = draw_valid(IDS, LABELS, groups)
        again, _ = draw_valid([IDS[row] for row in order], LABELS[order], groups and [groups[row] for row in order])
        assert {IDS[row] for row in np.flatnonzero(there)} == {IDS[order[row]] for row in np.flatnonzero(again)}


def test_groups_stay_whole_and_their_share_is_kept() -> None:
    groups = np.array([f"v{row // 7}" for row in range(400)])
    valid_N, note = draw_valid(IDS, LABELS, groups.tolist())
    assert not set(groups[valid_N]) & set(groups[~valid_N])
    assert 0.10 <= valid_N.mean() <= 0.15
    assert "videos" in note


def test_group_too_large_for_the_share_is_passed_over() -> None:
    groups = ["large"] * 300 + [f"v{row // 5}" for row in range(30)]
    taken_N = grouped(groups, share=0.125, largest=0.15)
    assert not taken_N[:300].any()
    assert taken_N[300:].all()


def test_drawn_split_of_fewer_than_20_rows_is_refused() -> None:
    assert draw_valid(IDS[:200], LABELS[:200], None)[0].sum() == 20
    with pytest.raises(DataError, match=r"190 training utterances are enough to draw 19 for it, but 20 are needed"):
        draw_valid(IDS[:190], LABELS[:190], None)


def test_drawn_split_needs_ten_of_either_class() -> None:
    label_N = (np.arange(400) < 60).astype(np.float64)
    with pytest.raises(DataError, match="10 of each class"):
        draw_valid(IDS, label_N, None, classes=True)
    draw_valid(IDS, (np.arange(400) < 120).astype(np.float64), None, classes=True)
