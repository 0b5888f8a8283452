"""`predict`: scores of new rows, whatever the size of a part, and what a fault leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from cli.models import HOSTILE, changed, model_of, rows_of
from report.stored import change, restore
from waiting import wait_for

import grcf_ray
from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.data.schema import conform, labels_of
from grcf_ray.data.store import DatasetStore, write_store
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.storage import storage_path
from grcf_ray.train.export import load_model
from grcf_ray.train.manifest import write_manifest

Run = Callable[..., tuple[int, str, str]]

STORED = Path(__file__).parents[1] / "stored" / "run-1"


@pytest.mark.parametrize(("suffix", "batch"), [(".parquet", 2048), (".csv", 33), (".jsonl", 7)])
def test_rows_in_their_order_whatever_the_part(
    full: Path, tiny_parquet: Path, tiny_table: pa.Table, tmp_path: Path, run: Run, batch: int, suffix: str
) -> None:
    output = tmp_path / f"scores{suffix}"
    code, out, err = run(full, "--input", tiny_parquet, "--output", output, "--batch", batch)
    assert (code, err) == (0, "")
    assert out.startswith("80 rows scored (") and out.splitlines()[0].endswith(f": {output}")
    rows = rows_of(output)
    assert list(rows[0]) == ["id", "split", "label", "score", "group"]
    assert [row["id"] for row in rows] == tiny_table["id"].to_pylist()
    assert [row["split"] for row in rows] == tiny_table["split"].to_pylist()
    np.testing.assert_allclose([row["label"] for row in rows], tiny_table["label"].to_numpy(), atol=1e-6)
    expected = grcf_ray.load_model(full).score(conform(tiny_table))
    np.testing.assert_allclose([row["score"] for row in rows], expected, atol=1e-5)
    if batch == 2048:
        assert [row["score"] for row in rows] == expected.tolist()
    assert np.ptp(expected) > 0.01


def test_the_input_may_be_any_table(
    full: Path, tiny_csv: Path, tiny_parquet: Path, tiny_table: pa.Table, tmp_path: Path, run: Run
) -> None:
    rows = tmp_path / "new.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tiny_table.to_pylist()))
    scores = set()
    for number, source in enumerate((tiny_csv, tiny_parquet, rows)):
        output = tmp_path / f"{number}.csv"
        assert run(full, "--input", source, "--output", output, "--batch", 9)[0] == 0
        scores.add(output.read_text())
    assert len(scores) == 1


def test_text_alone_is_enough(textual: Path, tmp_path: Path, run: Run) -> None:
    """Ids are the rows' numbers over all files; the score is that of the list of texts."""
    texts = ["the film was great", "bad", "", HOSTILE, "awful plot"]
    folder = tmp_path / "new"
    folder.mkdir()
    pq.write_table(pa.table({"text": texts[:3]}), folder / "a.parquet")
    pq.write_table(pa.table({"text": texts[3:], "id": ["x", None], "label": [0.5, None]}), folder / "b.parquet")
    code, _, err = run(textual, "--input", folder, "--output", tmp_path / "scores.jsonl", "--batch", 2)
    assert (code, err) == (0, "")
    rows = rows_of(tmp_path / "scores.jsonl")
    assert [row["id"] for row in rows] == ["1", "2", "3", "x", "5"]
    assert [row["label"] for row in rows] == [None, None, None, 0.5, None]
    np.testing.assert_allclose(
        [row["score"] for row in rows], grcf_ray.load_model(textual).score(texts), atol=1e-5, rtol=0
    )


def test_a_model_without_text_scores_rows_without_text(
    tiny_backbone: Path, tiny_store: DatasetStore, tiny_table: pa.Table, tiny_csv: Path, tmp_path: Path, run: Run
) -> None:
    model = model_of(tmp_path / "best", tiny_backbone, tiny_store, model__modalities="audio+vision")
    expected = load_model(model).score(tiny_table)
    pq.write_table(tiny_table.drop_columns(["text"]), tmp_path / "rows.parquet")
    pyarrow.csv.write_csv(pyarrow.csv.read_csv(tiny_csv).drop_columns(["text"]), tmp_path / "rows.csv")
    for name in ("rows.parquet", "rows.csv"):
        code, _, err = run(model, "--input", tmp_path / name, "--output", tmp_path / "out.parquet")
        assert code == 0, err
        scored = [row["score"] for row in rows_of(tmp_path / "out.parquet")]
        assert scored == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_what_is_written_is_read(textual: Path, tiny_table: pa.Table, tmp_path: Path, run: Run, suffix: str) -> None:
    """With its texts, by the same command: the same again; hostile texts come back as they are."""
    columns = {name: [HOSTILE, *tiny_table[name].to_pylist()[1:]] for name in ("text", "id", "split")}
    pq.write_table(changed(tiny_table, **columns), tmp_path / "new.parquet")
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    _, out, err = run(textual, "--input", tmp_path / "new.parquet", "--output", first, "--with-text")
    assert "\x1b" not in out + err
    code, _, err = run(textual, "--input", first, "--output", second, "--with-text")
    assert (code, err) == (0, "")
    assert second.read_bytes() == first.read_bytes()
    row = rows_of(second)[0]
    assert (row["text"], row["id"], row["split"]) == (HOSTILE, HOSTILE, HOSTILE)
    assert run(textual, "--input", first, "--output", second)[0] == 0
    assert "text" not in rows_of(second)[0]


def test_metrics_where_there_are_labels(
    textual: Path, tiny_store: DatasetStore, tiny_parquet: Path, tiny_table: pa.Table, tmp_path: Path, run: Run
) -> None:
    """Those that the same model is measured by, each split apart; of what has no split together."""
    saved = grcf_ray.load_model(textual)
    words = ["--input", tiny_parquet, "--output", tmp_path / "o.csv", "--batch", 7]
    code, out, _ = run(textual, *words, "--json")
    assert code == 0
    scored = json.loads(out)["metrics"]
    assert list(scored) == ["train", "valid", "test"]
    for split, metrics in scored.items():
        rows = tiny_store.read(split)
        assert metrics == pytest.approx(saved.metrics(saved.score(rows), labels_of(rows)), abs=1e-4)
    lines = run(textual, *words)[1].splitlines()
    assert lines[1].split() == ["metric", "train", "valid", "test"]

    label = [*tiny_table["label"].to_pylist()[:78], None, None]
    pq.write_table(changed(tiny_table.drop_columns(["split"]), label=label), tmp_path / "new.parquet")
    words = ["--input", tmp_path / "new.parquet", "--output", tmp_path / "o.csv", "--json"]
    code, out, _ = run(textual, *words)
    answer = json.loads(out)
    assert (code, list(answer["metrics"])) == (0, ["all"])
    (note,) = answer["notes"]
    assert "78 rows of 80" in note
    rows = rows_of(tmp_path / "o.csv")[:78]
    expected = np.mean([abs(row["score"] - row["label"]) for row in rows])
    assert answer["metrics"]["all"]["mae"] == pytest.approx(expected, abs=1e-4)

    pq.write_table(changed(tiny_table, label=[5.0, *label[1:]]), tmp_path / "new.parquet")
    answer = json.loads(run(textual, *words)[1])
    assert answer["metrics"] == {}
    lowest = min(value for value in label if value is not None)
    (note,) = answer["notes"]
    assert f"[{lowest:g}, 5]" in note and "[-3, 3]" in note


def test_two_classes(tiny_backbone: Path, tiny_table: pa.Table, tmp_path: Path, run: Run) -> None:
    """Probability and logit, and the class that is the likelier."""
    label_N = (tiny_table["label"].to_numpy() > 0).astype(np.float64)
    table = tiny_table.set_column(tiny_table.column_names.index("label"), "label", pa.array(label_N))
    pq.write_table(table, tmp_path / "classes.parquet")
    options = ImportOptions(dataset="classes", task="classification")
    store = write_store(tmp_path / "store", *import_source(tmp_path / "classes.parquet", options))
    folder = model_of(tmp_path / "best", tiny_backbone, store)
    code, _, err = run(folder, "--input", tmp_path / "classes.parquet", "--output", tmp_path / "scores.parquet")
    assert (code, err) == (0, "")
    scored = pq.read_table(tmp_path / "scores.parquet")
    assert scored.column_names == ["id", "split", "label", "score", "logit", "group"]
    logit_N = grcf_ray.load_model(folder).score(conform(table))
    np.testing.assert_array_equal(scored["logit"].to_numpy(), logit_N)
    np.testing.assert_allclose(scored["score"].to_numpy(), 1 / (1 + np.exp(-logit_N)), rtol=1e-12)
    assert scored["group"].to_pylist() == [str(int(logit > 0)) for logit in logit_N]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--output", "o.txt"), 2, ".parquet, .csv, .jsonl"),
        (("--output", "{input}"), 2, "--output"),
        (("--output", "o.csv", "--data-format", "word"), 2, "unknown format 'word'"),
        (("--output", "o.csv", "--data-format", "mag"), 3, "not a pickle"),
        (("--output", "o.csv", "--batch", "0"), 2, ""),
    ],
)
def test_usage(textual: Path, tiny_csv: Path, run: Run, words: tuple[str, ...], code: int, message: str) -> None:
    before = tiny_csv.read_bytes()
    ended, _, err = run(textual, "--input", tiny_csv, *(word.format(input=tiny_csv) for word in words))
    assert ended == code
    assert message in err
    assert tiny_csv.read_bytes() == before


def test_a_run_and_its_best_are_the_same_model(tiny_parquet: Path, tmp_path: Path, run: Run) -> None:
    """As a path, a URI, or best/ copied to elsewhere."""
    shutil.copytree(STORED / "best", tmp_path / "moved")
    for number, where in enumerate((STORED, STORED / "best", tmp_path / "moved", STORED.as_uri())):
        code, _, err = run(where, "--input", tiny_parquet, "--output", tmp_path / f"{number}.csv")
        assert code == 0 and len(err.splitlines()) == 1 and "was saved by an earlier version" in err
        assert (tmp_path / f"{number}.csv").read_text() == (tmp_path / "0.csv").read_text()


def test_where_there_is_no_model(tiny_csv: Path, tmp_path: Path, run: Run) -> None:
    words = ["--input", tiny_csv, "--output", tmp_path / "o.csv"]
    code, _, err = run(tmp_path / "nowhere", *words)
    assert (code, "run.json" in err) == (3, True)
    (tmp_path / "begun").mkdir()
    RunRecord(storage_path(tmp_path / "begun")).write_run({"state": "interrupted"})
    code, _, err = run(tmp_path / "begun", *words)
    assert code == 3
    assert str(tmp_path / "begun") in err and "interrupted" in err


@pytest.fixture
def retrained(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path: Path) -> Path:
    """A run whose winner has been retrained: 0000, 0002 and 0004 are the winner's, the others the starting point's."""
    folder = Path(shutil.copytree(STORED, tmp_path / "run"))
    record = RunRecord(storage_path(folder / "seeds" / "stage2-4"))
    for number in range(6):
        settings = {"model__modalities": "text+audio", "seed": 10 + number}
        place = Path(str(record.place)) / "models" / f"{number:04d}"
        model_of(place, tiny_backbone, tiny_store, **settings)
        (place / "metrics.json").write_text("{}")
        write_manifest(place)
        # Trials of Stage 2 are numbered in the order in which those of Stage 1 came through.
        params = {"finalist": str(number)}
        record.write_trial(TrialRecord(number=number, stage=2, attempt=1, params=params, seed=number, state="complete"))
    (folder / "seeds" / "metrics.json").write_text(
        json.dumps({"winner": "stage2/4", "seeds": 3, "complete": True, "models": [], "arms": {}, "gain": {}})
    )
    return folder


def test_spread_over_the_seeds(
    retrained: Path, tiny_parquet: Path, tiny_table: pa.Table, tmp_path: Path, run: Run
) -> None:
    code, out, err = run(retrained, "--input", tiny_parquet, "--output", tmp_path / "s.parquet", "--json")
    assert code == 0, err
    earlier, progress = err.splitlines()
    assert earlier.startswith("note: ") and "3 retrained models" in progress
    assert json.loads(out)["seeds"] == 3
    scored = pq.read_table(tmp_path / "s.parquet")
    assert scored.column_names[-4:] == ["score", "group", "seeds_mean", "seeds_deviation"]
    models = retrained / "seeds" / "stage2-4" / "models"
    expected = np.stack(
        [grcf_ray.load_model(models / name).score(conform(tiny_table)) for name in ("0000", "0002", "0004")]
    )
    np.testing.assert_allclose(scored["seeds_mean"].to_numpy(), expected.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(scored["seeds_deviation"].to_numpy(), expected.std(axis=0, ddof=1), atol=1e-5)
    np.testing.assert_array_equal(scored["score"].to_numpy(), grcf_ray.load_model(retrained).score(conform(tiny_table)))
    assert run(retrained, "--input", tiny_parquet, "--output", tmp_path / "n.parquet", "--no-seeds")[2].endswith(
        f"{earlier}\n"
    )
    assert "seeds_mean" not in pq.read_table(tmp_path / "n.parquet").column_names


@pytest.fixture
def assembled(tiny_backbone: Path, tiny_store: DatasetStore, tmp_path: Path) -> Path:
    """A run whose winner reads text, and the other members of its ensemble text and vision, and all."""
    folder = restore(tmp_path / "run")
    members = {"best": "text", "ensemble/stage2-1": "text+vision", "ensemble/stage2-0": "all"}
    for seed, (place, modalities) in enumerate(members.items()):
        model_of(folder / place, tiny_backbone, tiny_store, seed=seed, model__modalities=modalities)
    names = ["stage2/4", "stage2/1", "stage2/0"]
    change(folder / "best" / "metrics.json", ensemble={"members": names, "valid": {}, "test": {}})
    write_manifest(folder / "best")
    return folder


def test_an_ensemble_scores_as_the_mean_of_its_members(
    assembled: Path, tiny_parquet: Path, tiny_table: pa.Table, tmp_path: Path, run: Run
) -> None:
    """From all modalities that any of them reads; metrics and groups are those of the mean score."""
    words = ["--input", tiny_parquet, "--output"]
    each = []
    for number, place in enumerate(("best", "ensemble/stage2-1", "ensemble/stage2-0")):
        assert run(assembled / place, *words, tmp_path / f"{number}.parquet")[0] == 0
        each.append(pq.read_table(tmp_path / f"{number}.parquet")["score"].to_numpy())
    code, out, err = run(assembled, *words, tmp_path / "mean.parquet", "--ensemble", "--json")
    assert code == 0, err
    scored = pq.read_table(tmp_path / "mean.parquet")
    assert scored.column_names == ["id", "split", "label", "score", "group"]
    np.testing.assert_array_equal(scored["score"].to_numpy(), np.mean(each, axis=0))
    answer = json.loads(out)
    assert answer["ensemble"] == 3
    test_N = np.array(tiny_table["split"].to_pylist()) == "test"
    error = np.abs(np.mean(each, axis=0) - scored["label"].to_numpy())[test_N].mean()
    assert answer["metrics"]["test"]["mae"] == pytest.approx(error, abs=1e-6)
    ensemble = grcf_ray.open_run(assembled).ensemble
    np.testing.assert_allclose(ensemble.score(conform(tiny_table)), np.mean(each, axis=0), atol=1e-5)

    pq.write_table(tiny_table.drop_columns(["vision"]), tmp_path / "silent.parquet")
    words = ["--input", tmp_path / "silent.parquet", "--output", tmp_path / "s.csv"]
    assert run(assembled, *words)[0] == 0
    assert run(assembled, *words, "--ensemble")[0] == 3
    code, out, _ = run(assembled, *words, "--ensemble", "--fit-features", "--json")
    assert (code, json.loads(out)["notes"]) == (0, ["no vision: taken as missing in every utterance"])


def test_without_an_ensemble_there_is_none_to_score_with(tiny_parquet: Path, tmp_path: Path, run: Run) -> None:
    for where in (STORED, STORED / "best"):
        code, _, err = run(where, "--input", tiny_parquet, "--output", tmp_path / "o.csv", "--ensemble")
        assert code == 3
        assert f"{where} has no ensemble" in err
    assert not (tmp_path / "o.csv").exists()


@pytest.mark.integration
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_leaves_what_was_there(textual: Path, tmp_path: Path, how: signal.Signals) -> None:
    """Where the process is told, it clears away what it has begun."""
    pq.write_table(pa.table({"text": ["the film was great and bad"] * 5_000}), tmp_path / "new.parquet")
    (tmp_path / "o.csv").write_text("before")
    words = ["--input", tmp_path / "new.parquet", "--output", tmp_path / "o.csv", "--batch", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "grcf_ray.predict", *map(str, [textual, *words])],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        wait_for(lambda: any(path.stat().st_size > 0 for path in tmp_path.glob(".o.csv.*")), "part of the output")
    finally:
        process.send_signal(how)
        process.wait()
    assert (tmp_path / "o.csv").read_text() == "before"
    assert process.returncode == (130 if how == signal.SIGTERM else -how)
    assert bool(list(tmp_path.glob(".o.csv.*"))) == (how == signal.SIGKILL)


def test_a_fault_in_the_middle_leaves_what_was_there(
    textual: Path, tiny_csv: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grcf_ray.train import scoring

    calls = 0
    real = scoring.scored

    def fails(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(scoring, "scored", fails)
    (tmp_path / "o.parquet").write_text("before")
    code, _, _ = run(textual, "--input", tiny_csv, "--output", tmp_path / "o.parquet", "--batch", 10)
    assert (code, calls) == (130, 3)
    assert [path.name for path in tmp_path.glob("*o.parquet*")] + [path.name for path in tmp_path.glob(".o*")] == [
        "o.parquet"
    ]
    assert (tmp_path / "o.parquet").read_text() == "before"


def test_progress_says_what_is_left(
    textual: Path, tiny_csv: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grcf_ray.console._QUIET_S", 5.0)
    clock = iter(float(10 * second) for second in range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    code, _, err = run(textual, "--input", tiny_csv, "--output", tmp_path / "o.csv", "--batch", 40)
    assert code == 0
    (line,) = err.splitlines()
    assert line[line.index("scoring") :] == "scoring rows 40/80  ETA 10 s"
