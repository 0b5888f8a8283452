"""python -m grcf_ray.evaluate: measure a finished run's best model again, in a new process."""

from __future__ import annotations

from pathlib import Path

import typer

from grcf_ray import console

app = console.make_app("Measure the best model of a run again.")


@app.command()
def evaluate(
    run: str = typer.Argument(..., help="A run, as the search printed it: a folder or a URI."),
    data: Path | None = typer.Option(
        None, metavar="FILE|DIR", help="The data, where they no longer lie where the run read them."
    ),
    split: str = typer.Option(
        "test", metavar="NAME", help="train, valid or test; reading test is noted in provenance."
    ),
    json: bool = typer.Option(False, "--json", help="Print the metrics as JSON."),
) -> None:
    """Load best/ and measure it on a split; says whether the figures are those that the search recorded.

    \b
    Examples:
      python -m grcf_ray.evaluate runs/demo-all-MiniLM-L6-v2-seed42
      python -m grcf_ray.evaluate runs/demo-all-MiniLM-L6-v2-seed42 --split valid --json
    """
    import json as json_library

    from grcf_ray.data.schema import SPLITS
    from grcf_ray.errors import ConfigError, DataError
    from grcf_ray.report.terminal import METRIC_TITLES
    from grcf_ray.search.opening import recorded_store
    from grcf_ray.search.record import RunRecord
    from grcf_ray.search.winner import measure, note_test_read
    from grcf_ray.storage import place_at

    if split not in SPLITS:
        raise ConfigError(f"--split {split}: choose from {', '.join(SPLITS)}")
    record = RunRecord(place_at(run, check=True))
    described = record.read_run()
    best = record.place / "best"
    try:
        recorded = (best / "metrics.json").read_json()
    except FileNotFoundError as error:
        raise DataError(f"{run} has no best model yet: its search is {described['state']}") from error
    store = recorded_store(record, data)
    if split == "test":
        note_test_read(best, "evaluate", [recorded["trial"]])
    with best.reading_folder() as model:
        metrics = measure(model, store.read(split), threads=recorded["threads"])
    same = None if split not in recorded else metrics == recorded[split]
    if json:
        print(json_library.dumps({"split": split, "metrics": metrics, "as_recorded": same}, indent=2))
        return
    before = recorded.get(split, {})
    console.print_table(
        ("metric", split, "recorded"),
        [
            (title, f"{metrics[key]:.4f}", f"{before[key]:.4f}" if key in before else "-")
            for key, title in METRIC_TITLES.items()
            if key in metrics
        ],
    )
    if same is not None:
        print("Exactly as recorded." if same else "Not as recorded: another machine type, or other versions.")


if __name__ == "__main__":
    console.run(app)
