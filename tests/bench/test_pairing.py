from __future__ import annotations

from typing import TYPE_CHECKING

import pairing
import pytest
from ray import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Callable

    from grcf_ray.bench.setup import Setup


def test_verdict_of_known_curves() -> None:
    sampled = [[(1.0, 0.60 + s), (2.0, 0.70 + s)] for s in (0.00, 0.01, 0.02)]
    every = [[(1.0, 0.71 + s), (2.0, 0.72 + s)] for s in (0.00, 0.01, 0.025)]
    rows = pairing.curve_rows({"sampled": sampled, "all": every})
    assert [row["name"] for row in rows] == ["1.00", "2.00"]
    assert rows[0]["difference"] == pytest.approx(0.11 + 0.005 / 3)
    assert rows[1]["low"] < rows[1]["difference"] < rows[1]["high"]
    reached, noise = pairing.verdict(rows)
    assert reached.startswith("all ") and "after 1.00 passes" in reached and reached.endswith("2.00")
    assert "exceeds seed noise" in noise


@pytest.mark.integration
@pytest.mark.usefixtures("ray_session")
def test_each_pairing_has_its_learning_rate_and_the_same_utterances(
    setup_of: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FACTORS", (0.5, 1.0)), ("SEEDS", (1, 2)), ("PASSES", 1)):
        monkeypatch.setattr(pairing, name, value)
    # The workers get the functions of the script by value, as they do when it is `__main__`.
    cloudpickle.register_pickle_by_value(pairing)
    said: list[str] = []
    rates, curves = pairing.pairing_tables(setup_of(say=said.append))
    assert len(said) == 2 * 2 + 2 * 2
    assert [row["name"] for row in rates.rows] == ["0.5 x", "1 x"]
    assert len(curves.rows) == 2
    assert 0.7 < float(curves.rows[-1]["name"]) < 1.1
    assert all(0 <= row[name] <= 1 for row in curves.rows for name in ("sampled", "all"))
