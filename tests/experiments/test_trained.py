"""Models of experiments: trained once, paired by seed, resumed after an interruption, and measured by commands."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from grcf_ray.config import flatten
from grcf_ray.errors import NoWinnerError
from grcf_ray.experiments import grids
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.grids import backbones
from grcf_ray.experiments.model_pool import Arm, configured, entries_of
from grcf_ray.experiments.registry import Options
from grcf_ray.experiments.transfer import transfer
from grcf_ray.metrics import split_metrics
from grcf_ray.model.baselines import tfn
from grcf_ray.search.events import Event, TrialStarted
from grcf_ray.search.record import RunRecord
from grcf_ray.search.seeds import fresh_seed
from grcf_ray.search.transfer import measure_on
from grcf_ray.storage import storage_path
from grcf_ray.train.checkpoint import read_checkpoint
from grcf_ray.train.export import load_model
from tests.experiments.conftest import StartedTrials, Trained

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.experiments.result import ExperimentResult

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_session")]

MakeContext = Callable[..., ExperimentContext]
TRANSFERS = [
    "In-domain: both stages here",
    "Zero-shot: both stages there",
    "Transfer v1: Stage 1 there, Stage 2 here",
    "Transfer v2: both stages there, Stage 2 here",
]


def mae(result: ExperimentResult) -> dict[str, Any]:
    table = next(table for table in result.tables if table.name == "mae")
    return {row["title"]: row for row in table.rows}


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


def test_a_killed_experiment_goes_on_and_grows(trained: Trained, context_on: MakeContext) -> None:
    """Killed in Stage 2; another experiment trains its own arms alone, of which some diverge; the first one resumes.

    A training that diverges leaves the others of its search, and of other searches, alone.
    """
    started = StartedTrials()

    def context(seeds: int) -> ExperimentContext:
        return context_on(trained.killed, listeners=(started,), seeds=seeds)

    pool = context(1).model_pool(trained.arms[0])
    assert [trial.state for trial in pool.record.trials(2)] == ["complete"]
    strict = Arm("strict", "strict,5", {"ranking.groups": "strict,5"})
    wild = Arm("wild", "wild", {"stage1.head_lr": 1e30, "stage1.encoder_lr": 1e30})
    rates = {f"stage2.{name}": 1e30 for name in ("head_lr", "encoder_top_lr", "encoder_base_lr")}
    # In a search of its own, in which nothing ends well.
    alone = Arm("alone", "alone", {**rates, "stage1.epochs": 0})
    models = context(1).models([strict, wild, alone], "margins")
    assert started == ["1/8", "1/9", "2/1", "2/0"], "the trials of the first experiment wait for it"
    assert [model.index for model in models["strict"]] == [0] and models["wild"] == models["alone"] == []
    assert dict(models["strict"][0].metrics["test"]) not in trained.metrics("full")
    # Without the reference nothing is measured, and what diverged is not trained again.
    with pytest.raises(NoWinnerError, match="wild"):
        context(1).models([wild], "test")
    assert len(started) == 4

    started.clear()
    arms = trained.arms[:2]
    wanted = [entry for arm in arms for entry in entries_of(configured(context(1).config, arm), range(3))]
    pool = context(1).model_pool(arms[0])
    left = pool.trials(2, wanted).count(None)
    models = context(3).models(arms, "ablation")
    # With the third seed, whose Stage 1 is trained too.
    assert 5 <= left <= 6 and [name for name in started if name[0] == "1"] == ["1/10", "1/11"]
    assert len(started) == 2 + left
    for arm in arms:
        assert [model.index for model in models[arm.name]] == [0, 1, 2]
        assert [dict(model.metrics["test"]) for model in models[arm.name][:2]] == trained.metrics(arm.name)


def test_backbones_that_cannot_be_had_are_named(
    trained: Trained, context_on: MakeContext, tiny_backbone: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import BertConfig, BertModel

    other = tmp_path / "wider-bert"
    shutil.copytree(tiny_backbone, other)
    torch.manual_seed(1)
    wider = BertConfig.from_pretrained(tiny_backbone, hidden_size=48, num_attention_heads=3)
    BertModel(wider).save_pretrained(other)
    options = Options(backbones=(str(other), "nobody/no-such-encoder"))
    context = context_on(trained.folder, seeds=1, options=options)
    # The run's own encoder has been trained so.
    context.config = configured(context.config, next(arm for arm in trained.arms if arm.name == "no-stage1"))
    result = backbones(context)
    rows = mae(result)
    assert list(rows) == ["tiny-bert", "wider-bert", "no-such-encoder"]
    assert rows["tiny-bert"]["values"] == [trained.metrics("no-stage1")[0]["mae"]]
    assert len(rows["wider-bert"]["values"]) == 1
    assert rows["wider-bert"]["values"] != rows["tiny-bert"]["values"]
    assert rows["no-such-encoder"].get("mean") is None
    assert any("no-such-encoder" in note and "nobody/" in note for note in result.notes)


def test_the_commands_share_the_trained_models(
    trained: Trained, result_of: Callable[..., dict[str, Any]], few_draws: None, monkeypatch: pytest.MonkeyPatch
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


def trials(run: Path) -> dict[Path, Any]:
    """Return all trials that experiments trained below a run."""
    files = (run / "reproduce").rglob("stage?/trials/[0-9]*.json")
    return {path.relative_to(run): json.loads(path.read_text()) for path in files}


def ask_for_one_trial(run: Path) -> None:
    """Change a recorded search, so that a search at its cost has one trial in each stage."""
    content = json.loads((run / "run.json").read_text())
    for settings in (content["settings"], content["space"]["fixed"]):
        settings |= {"search.stage1_trials": 1, "search.stage2_trials": 1, "search.finalists": 1}
    (run / "run.json").write_text(json.dumps(content))


def test_an_ablation_that_is_searched_anew_goes_on(
    trained: Trained, reproduce: Any, few_draws: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the ablation's search and its trainings; the same command trains nothing twice."""
    folder = tmp_path / "tiny"
    shutil.copytree(trained.folder, folder)
    ask_for_one_trial(folder)
    # The reference, and an ablation whose own search is of one stage.
    monkeypatch.setattr(grids, "ABLATIONS", {kept: grids.ABLATIONS[kept] for kept in ("full", "no-stage2")})
    words = ("ablation", "--retune", "--seeds", "1", "--from", folder, "--json")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    begun = trials(folder)
    with monkeypatch.context() as patch:
        patch.setattr(ExperimentContext, "models", stop)
        assert reproduce(*words)[0] == 130
    before = trials(folder)
    assert {path.parts[1] for path in before.keys() - begun.keys()} == {"retuned"}
    assert not (folder / "reproduce" / "ablation-retuned").exists()

    def answer() -> Any:
        code, out, err = reproduce(*words)
        assert code == 0, err
        return json.loads(out)["tables"]

    tables = answer()
    assert (folder / "reproduce" / "ablation-retuned" / "result.json").exists()
    rows = next(table["rows"] for table in tables if table["name"] == "mae")
    assert [row["title"] for row in rows] == ["Full model", "w/o Stage 2", "w/o Stage 2, retuned"]
    for row in rows[:2]:
        assert row["values"] == [trained.metrics(row["name"])[0]["mae"]]
    after = trials(folder)
    assert {path: after[path]["ended"] for path in before} == {path: trial["ended"] for path, trial in before.items()}
    assert answer() == tables and trials(folder) == after, "nothing is left to train"

    # The ablation's search is a run, whose winner's parameters were trained.
    place, settings = folder / "reproduce" / "retuned" / "no-stage2", grids.ABLATIONS["no-stage2"]
    searched = json.loads((place / "run.json").read_text())
    assert searched["state"] == "finished"
    assert {path: searched["settings"][path] for path in settings} == dict(settings)
    params = next(iter(RunRecord(storage_path(place)).ranked(1))).params
    files = folder.glob("reproduce/models/*/entries.json")
    entries = [entry for file in files for entry in json.loads(file.read_text())]
    assert any(params.items() <= {**entry["stage1"], **entry["stage2"]}.items() for entry in entries)
    reads = json.loads((folder / "best" / "provenance.json").read_text())["test_reads"]
    assert not (place / "best").exists(), "the search itself opens no test split"
    assert not any("retuned" in name for read in reads for name in read["models"])
    # Models that were measured before are not measured again.
    assert [len(read["models"]) for read in reads if read["command"] == "reproduce ablation"] == [1]


def test_rivals_are_searched_once_and_more_may_follow(
    fresh: Path, reproduce: Any, few_draws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the search and the trainings; then two stages are added to what is there."""
    ask_for_one_trial(fresh)
    monkeypatch.setattr(tfn, "CARD", dataclasses.replace(tfn.CARD, networks={}))
    words = ("main", "--models", "lf-dnn", "--models", "tfn", "--seeds", "1", "--from", fresh, "--json")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ExperimentContext, "models", stop)
        assert reproduce(*words)[0] == 130
    searched = trials(fresh)
    assert {path.parts[2] for path in searched} == {"lf-dnn"}
    place = fresh / "reproduce" / "retuned" / "lf-dnn"
    assert json.loads((place / "run.json").read_text())["state"] == "finished"
    assert not (place / "best").exists(), "the search opens no test split"
    provenance = fresh / "best" / "provenance.json"
    assert [read["command"] for read in json.loads(provenance.read_text())["test_reads"]] == ["search"]

    def answer(*more: str) -> Any:
        code, out, err = reproduce(*words, *more)
        assert code == 0, err
        return json.loads(out)

    first = answer()
    rows = {row["title"]: row for row in first["tables"][0]["rows"]}
    assert {title: row["status"] for title, row in rows.items()} == {
        "GRCF": None,
        "LF-DNN": None,
        "TFN": "not applicable",
    }
    assert rows["LF-DNN"]["passes"] > 0 and rows["LF-DNN"]["parameters"] != rows["GRCF"]["parameters"]
    trained = trials(fresh)
    assert {path: trained[path] for path in searched} == searched
    reads = json.loads(provenance.read_text())["test_reads"]
    assert [read["command"] for read in reads] == ["search", *["reproduce main --models"] * 2]

    both = answer("--two-stage")
    assert {table["name"] for table in both["tables"]} == {"stages", *(table["name"] for table in first["tables"])}
    assert both["tables"][0] == first["tables"][0]
    (row,) = next(table["rows"] for table in both["tables"] if table["name"] == "stages")
    assert row["difference"] == pytest.approx(row["two"] - row["one"])
    assert any("after test had been read" in note and "LF-DNN, two stages" in note for note in both["notes"])
    after = trials(fresh)
    assert {path: after[path] for path in trained} == trained
    space = json.loads((fresh / "reproduce" / "retuned" / "lf-dnn-two-stage" / "run.json").read_text())["space"]
    assert any(path.startswith("lf-dnn.") for path in space["stage1"])


def test_rows_of_a_transfer_start_where_they_say_and_are_trained_once(
    trained: Trained, context_on: MakeContext, other: DatasetStore, few_draws: None, tmp_path: Path
) -> None:
    """From models that are trained already. Ctrl-C in the middle changes nothing."""
    folder = tmp_path / "tiny"
    shutil.copytree(trained.folder, folder)
    started = StartedTrials()

    def context(*listeners: Any) -> ExperimentContext:
        options = Options(onto="other", onto_data=other.folder)
        made = context_on(folder, seeds=1, listeners=(started, *listeners), options=options)
        made.config = configured(made.config, trained.arms[-1])
        return made

    def interrupt(event: Event) -> None:
        # The third trial is the first that starts from a model of the other data set.
        if isinstance(event, TrialStarted) and len(started) == 3:
            cut._stop.requested = True

    cut = context(interrupt)
    with pytest.raises(KeyboardInterrupt):
        transfer(cut)
    result = transfer(context())
    rows = mae(result)
    assert list(rows) == TRANSFERS
    assert len({row["mean"] for row in rows.values()}) == 4
    # Both stages here, and Stage 2 alone for each transfer; the interrupted trial starts twice at most.
    assert started[:2] == ["1/0", "2/0"] and set(started[2:]) == {"2/0"} and 4 <= len(started) <= 5
    text = " ".join(result.notes)
    assert "Audio: the last 2 of 7 values are cut off" in text and "Vision: 1 values" in text
    assert "scaled" in text

    started.clear()
    assert mae(transfer(context())) == rows
    assert started == [], "no model is trained twice"

    (there,) = context().models([Arm("there", "there")], "test")["there"]
    model = there.load()
    expected, _ = measure_on(model, other.read("test"), other.info, threads=1, fit=True)
    assert rows[TRANSFERS[1]]["values"] == [expected["mae"]]

    source, there_first = context().model_pool(trained.arms[-1]), entries_of(context().config, range(1))
    (below,) = (context().record.place / "reproduce" / "transfer").names()
    records = {}
    for row in ("in-domain", "stage1-there", "both-there"):
        place = context().record.place / "reproduce" / "transfer" / below / row
        (shape,) = place.names()
        records[row] = RunRecord(place / shape)
    stages: dict[str, Literal[1, 2]] = {"stage1-there": 1, "both-there": 2}
    for row, stage in stages.items():
        (given,) = source.trials(stage, there_first)
        assert given is not None and given.checkpoint is not None
        weights_here = read_checkpoint(records[row].finalist_folder(0) / "model.safetensors").tensors
        weights_there = read_checkpoint(source.record.at(given.checkpoint)).tensors
        weights = {name for name in weights_there if name.startswith("model.")}
        assert weights_here.keys() == weights and all(weights_here[name].equal(weights_there[name]) for name in weights)
    for row, widths in (("in-domain", {"vision": 2, "audio": 7}), ("both-there", model.model.modality_dims)):
        with (records[row].place / "models" / "0000").reading_folder() as read:
            saved = load_model(read)
        assert saved.model.modality_dims == widths
        config, expected_config = flatten(saved.config), flatten(context().config)
        assert config["ranking.base_margin"] == pytest.approx(2 * expected_config["ranking.base_margin"])
        assert config["stage1.reg_margin"] == pytest.approx(4 * expected_config["stage1.reg_margin"])
        assert saved.label_range == (-6, 6)
    reads = json.loads((folder / "best" / "provenance.json").read_text())["test_reads"]
    assert "reproduce transfer --onto other" in {read["command"] for read in reads}
