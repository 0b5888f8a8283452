from __future__ import annotations

from typing import TYPE_CHECKING

from grcf_ray.bench import layers

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from grcf_ray.bench.setup import Setup


def test_both_have_the_same_gradient(setup_of: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare one layer with DeBERTa-v3-base's real settings on a few subwords."""
    for name, value in (("_LAYERS", 1), ("_TOKENS", 64), ("_VOCABULARY", 50)):
        monkeypatch.setattr(layers, name, value)
    table = layers.positions_table(setup_of())
    assert [row["name"].split(",")[0] for row in table.rows] == ["length 16"] * 2 + ["length 50"] * 2
    for stock, cut in zip(table.rows[::2], table.rows[1::2], strict=True):
        assert stock["difference"] is None
        assert 0 < cut["difference"] < 1e-5
        assert stock["speed_up"] == 1
