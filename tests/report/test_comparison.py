"""`runs compare`: two runs side by side, and what their difference shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.stored import change, narrow, record_of

Command = Callable[..., tuple[int, str, str]]
Answer = Callable[..., Any]
BOTH = ("compare", "runs/recorded", "runs/other")


@pytest.fixture(autouse=True)
def other(runs: Path) -> Path:
    """A second copy of the run, to change."""
    return Path(shutil.copytree(runs / "recorded", runs / "other"))


def test_compare_says_what_differs_and_makes_no_claim_of_one_seed(
    command: Command, answer: Answer, runs: Path, other: Path
) -> None:
    assert "versions are the same" in command(*BOTH)[1]
    run = record_of(other).read_run()
    change(
        other / "run.json",
        settings=run["settings"] | {"search.stage1_trials": 9, "train.clip_norm": 2.0},
        space=run["space"] | {"stage2": {"stage2.head_lr": {"low": 1e-4, "high": 1e-3, "log": True, "start": 1e-3}}},
        versions=run["versions"] | {"torch": "9.9"},
        encoder=run["encoder"] | {"weights_sha256": "before"},
    )
    path = other / "best/metrics.json"
    metrics = json.loads(path.read_text())
    change(path, test={"mae": 0.25})
    reply = answer(*BOTH)
    assert reply["differences"] == {
        "budget": {"stage 1": ["6 x 3 epochs", "9 x 3 epochs"]},
        "settings": {"train.clip_norm": [1.0, 2.0]},
        "space": {
            "stage2.encoder_top_lr": ["0.0001 to 0.01, log", None],
            "stage2.head_lr": ["0.0001 to 0.01, log", "0.0001 to 0.001, log"],
        },
        "encoder": {"weights": [run["encoder"]["weights_sha256"], "before"]},
        "versions": {"torch": [run["versions"]["torch"], "9.9"]},
    }
    mae = metrics["test"]["mae"]
    assert reply["test"]["mae"] == {"values": [mae, 0.25], "difference": mae - 0.25}
    assert reply["test"]["corr"] == {"values": [metrics["test"]["corr"], None], "difference": None}
    assert reply["seeds"] is None
    assert reply["claim"].startswith("One seed each: no claim.")
    code, out, _ = command(*BOTH)
    assert code == 0
    rows = [line.split() for line in narrow(out)]
    assert ["train.clip_norm", "1", "2"] in rows
    assert ["MAE", f"{mae:.4f}", "0.2500", f"{mae - 0.25:+.4f}"] in rows
    assert ["epochs", "23", "23"] in rows
    change(other / "run.json", data=run["data"] | {"fingerprint": "f" * 64})
    reply = answer(*BOTH)
    assert "cannot be compared" in reply["claim"]
    assert {entry["difference"] for split in ("valid", "test") for entry in reply[split].values()} == {None}


def test_compare_gives_the_paired_interval_where_both_have_seeds(command: Command, answer: Answer, runs: Path) -> None:
    from scipy import stats

    winner = record_of(runs / "recorded").read_run()["winner"]

    def retrained(name: str, maes: dict[int, float]) -> None:
        models = [
            {"arm": arm, "index": seed, "seed": seed, "valid": {}, "test": {"mae": mae + 5 * (arm == "start")}}
            for seed, mae in maes.items()
            for arm in ("winner", "start")
        ]
        (runs / name / "seeds").mkdir(exist_ok=True)
        content = {"winner": winner, "seeds": len(maes), "complete": True, "models": models, "arms": {}, "gain": {}}
        (runs / name / "seeds/metrics.json").write_text(json.dumps(content))

    retrained("recorded", {7: 0.70, 8: 0.72, 9: 0.68})
    assert "B has one seed" in answer(*BOTH)["claim"]
    retrained("other", {5: 0.1, 6: 0.2})
    assert "fewer than two common seeds" in answer(*BOTH)["claim"]
    retrained("other", {9: 0.76, 7: 0.75, 5: 0.1})
    reply = answer(*BOTH)
    assert reply["seeds"]["seeds"] == 2
    gain = reply["seeds"]["gain"]["mae"]
    interval = stats.ttest_rel([0.70, 0.68], [0.75, 0.76]).confidence_interval(0.95)
    assert gain["mean"] == pytest.approx(-0.065)
    assert gain["mean"] - gain["half_width"] == pytest.approx(interval.low)
    lines = narrow(command(*BOTH)[1])
    assert any("under 2 common seeds" in line for line in lines)
    assert any(line.startswith("MAE     0.6900 ± 0.0141  0.7550 ± 0.0071  -0.0650 [") for line in lines)
