"""Command `evaluate`: measure the best model of a finished run again, in a new process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from grcf_ray import console
from grcf_ray.cli import options
from grcf_ray.data.datasets import spelled

app = console.make_app("Measure a run's best model again")


@app.command()
def evaluate(
    run: options.Run,
    data: options.MovedData = None,
    split: str = typer.Option(
        "test", metavar="NAME", help="train, valid or test; each reading of test is recorded in the run"
    ),
    on: str | None = typer.Option(
        None,
        metavar="NAME|DIR",
        callback=spelled,
        help="Another data set to measure on: an imported one, or a name whose path --data gives",
    ),
    label_range: options.LabelRange = None,
    fit_features: options.FitFeatures = False,
    json: options.Json = False,
) -> None:
    """Measure the best model of a run on a split, and compare the metrics with the recorded ones.

    So is the run's ensemble, the mean score of its best models, on the run's own data. --label-range and
    --fit-features are for another data set (--on).

    \b
    Examples:
      python -m grcf_ray.evaluate runs/demo-all-MiniLM-L6-v2-seed42
      python -m grcf_ray.evaluate runs/demo-all-MiniLM-L6-v2-seed42 --split valid --json
      python -m grcf_ray.evaluate runs/mosei-deberta-v3-base-seed42 --on mosi --fit-features
    """
    from grcf_ray.data.schema import SPLITS, labels_of
    from grcf_ray.data.store import find_data, is_store, resolve_data
    from grcf_ray.errors import ConfigError
    from grcf_ray.report.terminal import metric_lines
    from grcf_ray.search.ensemble import open_ensemble
    from grcf_ray.search.record import RunRecord
    from grcf_ray.search.run_lookup import recorded_store
    from grcf_ray.search.saved_model import no_model, open_model
    from grcf_ray.search.schema import MetricsFile, read_file
    from grcf_ray.search.transfer import measure_on
    from grcf_ray.search.winner import note_test_read
    from grcf_ray.storage import storage_path
    from grcf_ray.train.scoring import mean_score
    from grcf_ray.train.stage import use_deterministic_torch

    if split not in SPLITS:
        raise ConfigError(f"--split {split}: choose from {', '.join(SPLITS)}")
    record = RunRecord(storage_path(run, check=True))
    record.read_search()
    best = record.place / "best"
    try:
        recorded = read_file(best / "metrics.json", MetricsFile)
    except FileNotFoundError as error:
        raise no_model(record) from error
    if on is None and (label_range is not None or fit_features):
        raise ConfigError("--label-range and --fit-features are for another data set. Name it: --on NAME")
    if on is None:
        store = recorded_store(record, data)
    else:
        imported = data is None and is_store(Path(on))
        store = find_data(*resolve_data(None, on) if imported else (on, data), label_range)
        on = store.info.name
    ensemble = open_ensemble(record.place) if on is None else None
    models = ensemble.members if ensemble else [open_model(best)]
    model = models[0]
    if split == "test":
        names = recorded["ensemble"]["members"] if ensemble else [recorded["trial"]]
        note_test_read(best, "evaluate" if on is None else f"evaluate --on {on}", names)
    before: dict[str, float] = recorded.get(split, {}) if on is None else {}
    notes: list[str] = []
    rows, threads = store.read(split), recorded["threads"]
    if on is None:
        use_deterministic_torch(threads)
        label_N, scores = labels_of(rows), [each.score(rows) for each in models]
        metrics = model.metrics(scores[0], label_N)
    else:
        metrics, notes = measure_on(model, rows, store.info, threads=threads, fit=fit_features)
    same = metrics == before if before else None
    answer: dict[str, Any] = {"split": split, "metrics": metrics}
    columns = {split: metrics, "recorded": before} if on is None else {f"{on}, {split}": metrics}
    if ensemble:
        mean = model.metrics(mean_score(scores, model.task), label_N)
        mean_before = recorded["ensemble"].get(split, {})
        same = same and mean == mean_before
        answer["ensemble"] = mean
        columns |= {f"ensemble of {len(models)}": mean, "ensemble, recorded": mean_before}
    answer["as_recorded"] = same
    if json:
        console.print_json(answer if on is None else {**answer, "on": on, "notes": notes})
        return
    console.say("\n".join(metric_lines(columns, metrics)))
    for note in notes:
        console.say(console.sentence(note))
    if same is not None:
        console.say("Exactly as recorded." if same else "Not as recorded: the machine type or the versions differ.")
