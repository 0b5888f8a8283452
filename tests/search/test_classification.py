"""A data set of two classes through the whole search, by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import command

from grcf_ray import console
from grcf_ray.cli.reproduce import app as reproduce
from grcf_ray.cli.train import app as train
from grcf_ray.experiments.registry import EXPERIMENTS
from grcf_ray.metrics import split_metrics
from grcf_ray.report.view import RunView
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path
from tests.conftest import SPLIT_OF_FIVE
from tests.search.conftest import Run

SPACE = """
dataset: mustard
fixed:
  model.backbone: {backbone}
  model.text_vector: mean
  pairs.pairs_per_epoch: 96
  pairs.pairs_per_group: 16
  pairs.groups_per_step: 2
  train.precision: float32
  stage1.epochs: 3
  stage1.boundary_weight: 0.1
  stage2.epochs: 3
  stage2.top_layers: 0
  search.stage1_trials: 2
  search.stage2_trials: 2
  search.finalists: 2
  search.concurrent: 1
  search.ridge_baseline: true
stage1:
  stage1.encoder_lr: {{low: 1e-4, high: 1e-2, log: true, start: 2e-3}}
  stage1.head_lr: {{low: 1e-4, high: 1e-2, log: true, start: 2e-3}}
  classes.separation_margin: {{low: 0.3, high: 3.0, log: true, start: 1.0}}
stage2:
  stage2.encoder_base_lr: {{low: 1e-4, high: 1e-2, log: true, start: 1e-3}}
  stage2.head_lr: {{low: 1e-4, high: 1e-2, log: true, start: 1e-3}}
"""


@pytest.fixture
def words(tiny_table: pa.Table, tiny_backbone: Path, tmp_path: Path) -> list[Any]:
    """The tiny data set with a class for the sign of its label, and the first words of each text as its context."""
    label_N = tiny_table["label"].to_numpy()
    table = tiny_table.set_column(
        tiny_table.column_names.index("label"), "label", pa.array((label_N > np.median(label_N)).astype(np.float32))
    )
    before = [[text.split()[0], text.split()[-1]] for text in tiny_table["text"].to_pylist()]
    table = table.append_column("context", pa.array(before, pa.list_(pa.string())))
    pq.write_table(table, tmp_path / "classes.parquet")
    space = tmp_path / "classes.yaml"
    space.write_text(SPACE.format(backbone=tiny_backbone))
    argv = ["--dataset", "mustard", "--data", tmp_path / "classes.parquet", "--space", space]
    return [*argv, "--storage", tmp_path / "runs", "--name", "n"]


def test_a_search_of_two_classes_and_the_papers_experiments(
    run: Run,
    ray_session: None,
    words: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Fewer repetitions, to save time.
    monkeypatch.setattr("grcf_ray.statistics.RESAMPLES", 10)
    monkeypatch.setattr("grcf_ray.experiments.robustness.SIGMAS", (0.0, 0.3))
    monkeypatch.setattr("grcf_ray.experiments.robustness.DRAWS", 1)
    monkeypatch.setattr("grcf_ray.experiments.hard_pair_tables.PERMUTATIONS", 9)
    code, out, err = run(*words, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["task"] == "classification"
    assert "Stage 1: 2 trials of up to 3 epochs, maximise validation PairwiseAcc" in err
    assert "Stage 2: 2 trials of up to 3 epochs, minimise validation BCE" in err
    record = RunRecord(storage_path(tmp_path / "runs" / "n"))
    for stage, name in ((1, "pairwise_acc"), (2, "bce")):
        trials = record.trials(stage)  # type: ignore[arg-type]
        assert [trial.number for trial in trials] == [0, 1]
        best = (max if stage == 1 else min)(m[f"valid/{name}"] for trial in trials for m in trial.curve)
        assert summary["stages"][f"stage{stage}"]["best"][0]["objective"] == best
        assert summary["stages"][f"stage{stage}"]["best"][0]["metric"] == name
    first, second = record.trials(1)[0].curve[0], record.trials(2)[0].curve[0]
    assert {"loss/sep", "loss/comp", "loss/bound", "loss/cal", "loss/total", "active_pairs"} <= first.keys()
    assert {"loss/bce", "loss/total"} <= second.keys()
    assert set(summary["test"]) == {"bce", "acc2", "f1_positive", "f1_weighted", "f1_macro", "pairwise_acc", "auroc"}
    # The signs of these texts can be learned.
    assert summary["valid"]["auroc"] > 0.8
    (baseline,) = summary["baselines"]
    assert baseline["name"] == "logistic regression on the frozen text vectors"
    assert set(baseline["test"]) == set(summary["test"])
    described = record.read_run()
    assert described["data"]["task"] == "classification"
    sizes = [SPLIT_OF_FIVE.count(split) * 16 for split in ("train", "valid", "test")]
    assert f"{sizes[0]}/{sizes[1]}/{sizes[2]} utterances" in err

    # Logits of the positive class, and labels in the data's units.
    for split in ("valid", "test"):
        scored = RunView.read(record).scored(split)  # type: ignore[arg-type]
        assert scored is not None and set(scored.label_N) == {0.0, 1.0}
        assert split_metrics(scored.score_N, scored.label_N > 0.5, protocol="binary") == summary[split]

    # Again: nothing is trained. The text of the result, and the model from its file, are the same.
    code, out, err = run(*words)
    assert code == 0, err
    assert "valid BCE" in out and "AUROC" in out and "Acc2" in out
    assert "Paper: not comparable" in out

    # All experiments that two classes admit, by one command; the others are named.
    folder = tmp_path / "runs" / "n"
    experiments = command(reproduce, capsys)
    # Alone first: its search trains the models of the others, too.
    assert experiments("ablation", "--from", folder, "--seeds", 1)[0] == 0
    trained = set(folder.rglob("stage?/trials/*.json"))
    code, out, err = experiments("all", "--from", folder, "--seeds", 1, "--json")
    assert code == 0, err
    assert set(folder.rglob("stage?/trials/*.json")) == trained
    outcomes = {outcome["name"]: outcome for outcome in json.loads(out)}
    left_out = {"margins", "stability", "importance", "transfer"}
    assert left_out == {line.split()[0] for line in err.splitlines() if " is skipped: " in line}
    assert outcomes.keys() == EXPERIMENTS.keys() - left_out
    for name in outcomes:
        assert (folder / "reproduce" / name / "index.html").stat().st_size
    ablation = {table["name"]: [row["title"] for row in table["rows"]] for table in outcomes["ablation"]["tables"]}
    assert set(ablation) == {"bce", "acc2", "f1_positive", "auroc"}
    # Two classes have no ordinal groups, and so no dynamic margin.
    assert ablation["bce"] == ["Full model", "w/o advantage weighting", "w/o Stage 1", "w/o Stage 2", "direct BCE"]
    hard = {table["name"]: table["rows"] for table in outcomes["hard-pairs"]["tables"]}
    odds = [f"T-{letter}, {kind}" for letter in "VA" for kind in ("no conflict", "conflict")]
    assert [row["title"] for row in hard["modalities"]] == odds
    # Direct training has the epochs of both stages and learns from the classes alone.
    (place,) = (folder / "reproduce" / "models").glob("*-epochs-0-6-*")
    (direct,) = RunRecord(storage_path(place)).trials(2)
    assert len(direct.curve) == 6 and all(m["loss/total"] == m["loss/bce"] for m in direct.curve)
    # Regression alone: nearness of labels.
    assert not any(name.startswith("ols") for name in hard)


def test_what_the_task_does_not_read_is_neither_searched_nor_set(run: Run, words: list[Any], tmp_path: Path) -> None:
    code, _, err = run(*words, "--set", "ranking.base_margin=0.3", "--set", "stage1.epochs=1")
    assert (code, err) == (2, "error: ranking.base_margin: no effect on a classification data set; remove it\n")
    space = tmp_path / "wrong.yaml"
    text = Path(words[words.index("--space") + 1]).read_text()
    space.write_text(text.replace("classes.separation_margin:", "ranking.base_margin:"))
    words[words.index("--space") + 1] = space
    code, _, err = run(*words)
    assert code == 2
    assert "searches ranking.base_margin, which classification does not use" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--ablation", "static-margin"), "--ablation static-margin"),
        (("--set", "ranking.groups=strict,5"), "ranking.groups: no effect on a classification data set"),
    ],
)
def test_training_refuses_what_would_change_nothing(
    words: list[Any], more: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(word) for word in words[:6]]
    assert argv[::2] == ["--dataset", "--data", "--space"]
    with pytest.raises(SystemExit) as ended:
        console.run(train, [*argv, "--out", str(tmp_path / "out"), *more])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
