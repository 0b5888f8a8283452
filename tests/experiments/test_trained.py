"""Models of experiments: trained once, paired by seed, resumed after an interruption, and measured by commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from grcf_ray.errors import NoWinnerError
from grcf_ray.experiments import grids
from grcf_ray.experiments.grids import backbones
from grcf_ray.experiments.model_pool import Arm, configured
from grcf_ray.experiments.registry import Options
from grcf_ray.metrics import split_metrics
from grcf_ray.search.events import Event, TrialEnded
from grcf_ray.search.seeds import fresh_seed
from tests.experiments.conftest import StartedTrials, Trained
from tests.waiting import wait_for

if TYPE_CHECKING:
    from grcf_ray.experiments.context import ExperimentContext

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]

MakeContext = Callable[..., "ExperimentContext"]
ROOT = Path(__file__).parents[2]
KEPT = ("full", "no-stage2")
"""The reference, and an ablation whose own search is of one stage."""
DRIVER = f"""
import sys
from grcf_ray import console
from grcf_ray.experiments import grids
from grcf_ray.cli.reproduce import app
grids.ABLATIONS = {{name: grids.ABLATIONS[name] for name in {KEPT!r}}}
console.run(app)
"""


def test_arms_are_trained_once_and_paired_by_seed(trained: Trained, context_on: MakeContext) -> None:
    assert all([model.index for model in models] == [0, 1] for models in trained.models.values())
    # Four arms take 2 trials in each stage; no-stage1 takes two of Stage 2, no-stage2 none.
    both = [f"{stage}/{number}" for stage in (1, 2) for number in range(8)]
    assert sorted(trained.started) == sorted([*both, "2/0", "2/1"])
    assert len({str(trained.metrics(name)) for name in trained.models}) == 6, "every arm is a training of its own"
    reads = json.loads((trained.folder / "best" / "provenance.json").read_text())["test_reads"]
    assert [read["command"] for read in reads[:3]] == ["search", "reproduce margins", "reproduce margins"]
    assert all(name.startswith("reproduce/models/tiny-bert-epochs-") for read in reads[1:3] for name in read["models"])

    started = StartedTrials()
    again = context_on(trained.folder, listeners=(started,)).models(trained.arms, "another")
    assert started == [], "no model is trained twice, whichever experiment asks"
    assert {name: [model.place.uri for model in models] for name, models in again.items()} == {
        name: [model.place.uri for model in models] for name, models in trained.models.items()
    }
    # With one seed and one arm more, only those are trained.
    more = [trained.arms[0], Arm("strict", "strict,5", {"ranking.groups": "strict,5"})]
    grown = context_on(trained.folder, listeners=(started,), seeds=3).models(more, "test")
    assert [model.index for model in grown["strict"]] == [0, 1, 2]
    assert len(started) == 2 * (1 + 3)
    assert [dict(model.metrics["test"]) for model in grown["full"][:2]] == trained.metrics("full")


def test_the_full_arm_is_the_winner_as_seeds_retrain_it(trained: Trained, context_on: MakeContext) -> None:
    """The same parameters under the same seeds as `search --seeds`, whatever else is trained beside it."""
    context = context_on(trained.folder)
    model, winner = trained.models["full"][0], context.view.winner
    trials = context.model_pool(Arm("full", "Full")).record.trials(2)
    trial = next(trial for trial in trials if model.place.uri.endswith(f"models/{trial.number:04d}"))
    assert trial.seed == fresh_seed(context.config.seed, 2, 0)
    assert winner is not None
    assert {path: trial.params[path] for path in winner.params if path != "finalist"} == {
        path: value for path, value in winner.params.items() if path != "finalist"
    }
    for split in ("valid", "test"):
        scored = model.scored(split)
        metrics = split_metrics(scored.score_N, scored.label_N, protocol=context.protocol, limit=3.0)
        assert {name: metrics[name] for name in model.metrics[split]} == dict(model.metrics[split])


def test_an_interrupted_experiment_goes_on(trained: Trained, make_context: MakeContext) -> None:
    """Ctrl-C in the middle of Stage 2; another experiment trains its own arm alone; then the first one resumes."""
    started = StartedTrials()

    def interrupt(event: Event) -> None:
        if isinstance(event, TrialEnded) and event.trial.stage == 2:
            cut._stop.request()

    cut = make_context(listeners=(interrupt,))
    with pytest.raises(KeyboardInterrupt):
        cut.models(trained.arms[:2], "ablation")
    record = cut.model_pool(trained.arms[0]).record
    begun = len(record.trials(2))
    assert 0 < begun < 4

    strict = Arm("strict", "strict,5", {"ranking.groups": "strict,5"})
    make_context(listeners=(started,), seeds=1).models([strict], "margins")
    new = [name for name in started if name not in [f"2/{number}" for number in range(begun)]]
    assert new == ["1/4", f"2/{begun}"], "the others of the first experiment wait for it"

    started.clear()
    models = make_context(listeners=(started,)).models(trained.arms[:2], "ablation")
    assert len(started) == 4 - begun and all(name.startswith("2/") for name in started)
    for name in ("full", trained.arms[1].name):
        assert [dict(model.metrics["test"]) for model in models[name]] == trained.metrics(name)


def test_arms_that_come_to_nothing_leave_the_others(make_context: MakeContext) -> None:
    """One arm diverges under every seed: the rest is trained and measured; without the reference nothing is."""
    wild = Arm("wild", "wild", {"stage1.head_lr": 1e30, "stage1.encoder_lr": 1e30})
    rates = {f"stage2.{name}": 1e30 for name in ("head_lr", "encoder_top_lr", "encoder_base_lr")}
    # In a search of its own, in which nothing ends well.
    alone = Arm("alone", "alone", {**rates, "stage1.epochs": 0})
    context = make_context(seeds=1)
    models = context.models([Arm("full", "full"), wild, alone], "test")
    assert [model.index for model in models["full"]] == [0] and models["wild"] == models["alone"] == []
    with pytest.raises(NoWinnerError, match="wild"):
        context.models([wild], "test")


def test_backbones_that_cannot_be_had_are_named(make_context: MakeContext, tiny_backbone: Path, tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    other = tmp_path / "wider-bert"
    shutil.copytree(tiny_backbone, other)
    torch.manual_seed(1)
    wider = BertConfig.from_pretrained(tiny_backbone, hidden_size=48, num_attention_heads=3)
    BertModel(wider).save_pretrained(other)
    context = make_context(seeds=1, options=Options(backbones=(str(other), "nobody/no-such-encoder")))
    # Stage 2 alone, to save time.
    context.config = configured(context.config, Arm("short", "short", {"stage1.epochs": 0}))
    result = backbones(context)
    mae = {row["title"]: row for table in result.tables if table.name == "mae" for row in table.rows}
    assert list(mae) == ["tiny-bert", "wider-bert", "no-such-encoder"]
    assert len(mae["wider-bert"]["values"]) == 1
    assert mae["wider-bert"]["values"] != mae["tiny-bert"]["values"]
    assert mae["no-such-encoder"].get("mean") is None
    assert any("no-such-encoder" in note and "nobody/" in note for note in result.notes)


def test_the_commands_share_the_trained_models(
    trained: Trained, result_of: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grcf_ray.experiments.robustness.SIGMAS", (0.0, 0.3))
    monkeypatch.setattr("grcf_ray.experiments.robustness.DRAWS", 1)
    monkeypatch.setattr("grcf_ray.experiments.hard_pair_tables.PERMUTATIONS", 9)
    count = len(list(trained.folder.rglob("trials/*.json")))
    names = ("main", "hard-pairs", "tsne", "noise", "modalities")
    results = {name: result_of(name, trained.folder, "--seeds", 2) for name in names}
    assert len(list(trained.folder.rglob("trials/*.json"))) == count, "nothing is trained"

    main = results["main"]
    methods = {row["title"]: row for row in main["tables"][0]["rows"]}
    by_seed = [test["mae"] for test in main["data"]["by seed"].values()]
    assert methods["GRCF here, mean over seeds (2)"]["mae"] == np.mean(by_seed)
    assert by_seed == [test["mae"] for test in trained.metrics("full")]
    assert {table["name"] for table in results["hard-pairs"]["tables"]} >= {"weights", "ols minus distance", "counts"}

    panels = results["tsne"]["pictures"]["tsne"]["panels"]
    assert [panel["title"][:3] for panel in panels] == ["(a)", "(b)", "(c)", "(d)", "(e)"]
    rows = results["tsne"]["tables"][0]["rows"]
    assert [row["name"] for row in rows] == ["full", "no-advantage", "static-margin", "no-stage1", "no-stage2"]
    points = panels[0]["points"]
    assert [point["case"] for point in points] == [point["label"] < -2 for point in points]
    # The tiny test split has one such utterance or none, which is no cluster.
    assert sum(point["case"] for point in points) < 2
    assert all("silhouette" not in row and row["seeds"] == 2 for row in rows)
    assert any("cluster" in note for note in results["tsne"]["notes"])

    # Without a change of the input, the figures are those of the training, to the bit.
    clean = [test["mae"] for test in trained.metrics("all-modalities")]
    assert all(table["rows"][0]["mae"] == np.mean(clean) for table in results["noise"]["tables"])
    mae = next(table for table in results["modalities"]["tables"] if table["name"] == "mae")
    assert mae["rows"][0]["values"] == clean
    reads = json.loads((trained.folder / "best" / "provenance.json").read_text())["test_reads"]
    assert {"reproduce noise", "reproduce modalities"} <= {read["command"] for read in reads}


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command in a process of its own; kill it and its children at the end."""
    mark = f"killed-{uuid.uuid4().hex}"
    environment = {**os.environ, "GRCF_TEST": mark, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
        process.wait()


def trials(run: Path) -> dict[Path, Any]:
    """Return all trials that experiments trained below a run."""
    files = (run / "reproduce").rglob("stage?/trials/[0-9]*.json")
    return {path.relative_to(run): json.loads(path.read_text()) for path in files}


def test_an_experiment_that_is_killed_goes_on(
    trained: Trained, fresh: Path, reproduce: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command trains nothing twice, and has the figures of experiments that nobody killed."""
    run = json.loads((fresh / "run.json").read_text())
    for settings in (run["settings"], run["space"]["fixed"]):
        settings |= {"search.stage1_trials": 1, "search.stage2_trials": 1, "search.finalists": 1}
    (fresh / "run.json").write_text(json.dumps(run))
    monkeypatch.setattr(grids, "ABLATIONS", {kept: grids.ABLATIONS[kept] for kept in KEPT})
    words = ("ablation", "--retune", "--seeds", "1", "--from", str(fresh))
    # The ablation's search has ended then.
    moment = "reproduce/models/*/stage1/trials/0000.json"
    with started(*words) as process:
        wait_for(lambda: process.poll() is not None or list(fresh.glob(moment)), moment)
        assert process.poll() is None, "the command ended before the kill"
    before = {path: trial for path, trial in trials(fresh).items() if trial["state"] == "complete"}
    assert before and not list((fresh / "reproduce").glob("*/result.json"))

    def answer() -> Any:
        code, out, err = reproduce(*words, "--json")
        assert code == 0, err
        return json.loads(out)["tables"]

    tables = answer()
    assert (fresh / "reproduce" / "ablation-retuned" / "result.json").exists()
    rows = next(table["rows"] for table in tables if table["name"] == "mae")
    assert [row["title"] for row in rows] == ["Full model", "w/o Stage 2", "w/o Stage 2, retuned"]
    for row in rows[:2]:
        assert row["values"] == [trained.metrics(row["name"])[0]["mae"]]
    after = trials(fresh)
    assert {path: after[path]["ended"] for path in before} == {path: trial["ended"] for path, trial in before.items()}
    assert answer() == tables and trials(fresh) == after, "nothing is left to train"

    # The ablation's search is a run, whose winner's parameters were trained.
    place, settings = fresh / "reproduce" / "retuned" / "no-stage2", grids.ABLATIONS["no-stage2"]
    searched = json.loads((place / "run.json").read_text())
    assert searched["state"] == "finished"
    assert {path: searched["settings"][path] for path in settings} == dict(settings)
    params = json.loads((place / "best" / "provenance.json").read_text())["params"]
    files = fresh.glob("reproduce/models/*/entries.json")
    entries = [entry for file in files for entry in json.loads(file.read_text())]
    assert any(params.items() <= {**entry["stage1"], **entry["stage2"]}.items() for entry in entries)
    reads = json.loads((fresh / "best" / "provenance.json").read_text())["test_reads"]
    assert "reproduce/retuned/no-stage2" in {name for read in reads for name in read["models"]}
