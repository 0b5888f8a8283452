from __future__ import annotations

import pytest
import torch

from grcf_ray.bench import positions


def test_both_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the real settings, a layer and a few subwords of them."""
    for name, value in (("_LAYERS", 1), ("_TOKENS", 64), ("_VOCABULARY", 50)):
        monkeypatch.setattr(positions, name, value)
    table = positions.positions_table(torch.device("cpu"), 1, lambda _: None)
    assert [row["name"].split(",")[0] for row in table.rows] == ["length 16"] * 2 + ["length 50"] * 2
    for stock, cut in zip(table.rows[::2], table.rows[1::2], strict=True):
        assert stock["difference"] is None
        assert 0 < cut["difference"] < 1e-5
        assert stock["speed_up"] == 1
