"""Command `report`: write a run's report as a page, as text, or as the data of its charts."""

from __future__ import annotations

import typer

from grcf_ray import console
from grcf_ray.cli import options

app = console.make_app("Write the report of a run")


@app.command()
def report(
    run: options.Run,
    text: bool = typer.Option(False, "--text", help="Print the report in 80 columns instead of writing the page"),
    out: str | None = typer.Option(
        None,
        metavar="FILE",
        help="Path or URI of the page; report.json is written beside it [default: report.html in the run]",
    ),
    json: bool = typer.Option(False, "--json", help="Print the data of the charts instead of writing the page"),
) -> None:
    """Write a run's report: one HTML page that needs no network, and report.json with the data of its charts.

    A search writes the same page while it runs. The report reads the run record alone: it trains nothing and opens no
    data.

    \b
    Examples:
      python -m grcf_ray.report runs/demo-all-MiniLM-L6-v2-seed42
      python -m grcf_ray.report runs/demo-all-MiniLM-L6-v2-seed42 --text
      python -m grcf_ray.report s3://bucket/runs/mosi --out mosi.html
    """
    from grcf_ray.errors import ConfigError
    from grcf_ray.report.page import DATA, report_data, sections, write_report
    from grcf_ray.report.terminal import typed
    from grcf_ray.report.view import RunView
    from grcf_ray.report.worth import Worth
    from grcf_ray.search.record import RunRecord
    from grcf_ray.storage import storage_path

    if text + json + (out is not None) > 1:
        raise ConfigError("--text, --json and --out: choose one")
    target = None if out is None else storage_path(out, check=True)
    if target is not None and target.name == DATA:
        raise ConfigError(f"--out {out}: {DATA} is written beside the page. Give the page another name")
    record = RunRecord(storage_path(run, check=True))
    if text:
        from grcf_ray.report.text import text_report

        console.say(text_report(RunView.read(record)).rstrip("\n"))
    elif json:
        view = RunView.read(record)
        console.print_json(report_data(view, sections(view, Worth.of(view))))
    else:
        page = write_report(record, page=target)
        console.say(f"Report: {typed(page)}")
