"""The page of a run and its data, without a browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import math
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import commands
import pytest
from report.stored import record_of, seeds_content
from synthetic_run import HOSTILE, Run

from grcf_ray.cli.report import app
from grcf_ray.console import printable
from grcf_ray.errors import DataError
from grcf_ray.report import page as page_module
from grcf_ray.report.page import render_page, report_data, sections, write_report
from grcf_ray.report.summary import RunSummary
from grcf_ray.report.text import text_report
from grcf_ray.report.view import RunView
from grcf_ray.report.worth import Worth
from grcf_ray.search.lease import Lease
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

EMPTY = {"meta", "input", "link", "img", "br"}


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its tables by caption, its text by the id of the section."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, str] = {}
        self.scripts: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag not in EMPTY:
            self._open.append((tag, attributes))
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "data" and self._inside("tr"):
            # The figure with all its digits instead of the shown one.
            self._add(attributes["value"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1][0] == tag, f"</{tag}> ends {self._open[-1:]}"
        self._open.pop()
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if self._inside("script"):
            self.scripts.append(data)
            return
        if self._inside("caption"):
            self._caption += data
        elif self._inside("tr") and not self._inside("data"):
            self._add(data)
        for tag, attributes in self._open:
            if tag in ("section", "header", "figure") and (name := attributes.get("id") or tag):
                self.texts[name] = self.texts.get(name, "") + data

    def _inside(self, tag: str) -> bool:
        return any(name == tag for name, _ in self._open)

    def _add(self, text: str) -> None:
        self._rows[-1][-1] += text

    def json_of(self, **attributes: str) -> list[Any]:
        """The content of the blocks of JSON that have these attributes."""
        names = {name.replace("_", "-"): value for name, value in attributes.items()}
        blocks = [attributes for tag, attributes in self.elements if tag == "script"]
        assert len(blocks) == len(self.scripts)
        return [
            json.loads(script)
            for attributes, script in zip(blocks, self.scripts, strict=True)
            if attributes.get("type") == "application/json" and names.items() <= attributes.items()
        ]


def page_of(record: RunRecord) -> Page:
    """The run's page, as it would be written."""
    view = RunView.read(record)
    return Page(render_page(view, RunSummary.of(view), sections(view, None)))


@pytest.fixture(scope="module")
def written_page(written: Path) -> Page:
    return Page(written.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def view(stored_run: Path) -> RunView:
    return RunView.read(record_of(stored_run))


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> commands.Run:
    """Runs the command `report`."""
    return commands.command(app, capsys)


def test_the_answers_figures_are_the_records_to_the_last_digit(view: RunView, written_page: Page) -> None:
    metrics = view.metrics
    assert metrics is not None
    rows = {row[0]: row[1:] for row in written_page.tables["Metrics of the winner"]}
    ridge = metrics["baselines"][0]["test"]
    assert rows["Metric"] == ["Valid", "Test", "Ridge regression, test"]
    shown = {"MAE": "mae", "Corr": "corr", "PairwiseAcc": "pairwise_acc", "Acc (whole labels)": "acc_whole"}
    for title, name in shown.items():
        assert [float(value) for value in rows[title]] == [metrics["valid"][name], metrics["test"][name], ridge[name]]
    text = written_page.texts["section-answer"]
    assert f"Trial {metrics['trial']}, the best of 11 by validation" in text
    assert "optimistic: the best of 11 trials" in text
    assert "One seed" in text
    assert ("Ridge regression has the better test MAE" in text) == (ridge["mae"] < metrics["test"]["mae"])


def test_what_each_stage_gained_is_told_as_optimistic(view: RunView, written_page: Page) -> None:
    _, *rows = written_page.tables["Validation gain of each stage"]
    assert [row[0] for row in rows] == ["1", "2"]
    for stage, row in zip((1, 2), rows, strict=True):
        start, best = view.trials[stage][0].objective, view.ranked(stage)[0].objective
        assert start is not None and best is not None
        assert [float(value) for value in row[2:5]] == [start, best, best - start]
        assert row[5] == f"optimistic: best of {len(view.trials[stage])} trials"


def test_every_trial_is_on_the_page_as_recorded(view: RunView, written_page: Page) -> None:
    blocks = [block for block in written_page.json_of() if "columns" in block]
    for stage, block in zip((1, 2), blocks, strict=True):
        titles = [column["title"] for column in block["columns"]]
        assert len(block["rows"]) == len(view.trials[stage])
        for trial, row in zip(view.trials[stage], block["rows"], strict=True):
            entry = dict(zip(titles, row, strict=True))
            assert (entry["Trial"], entry["Epochs"], entry["Seconds"]) == (trial.number, trial.epoch, trial.seconds)
            assert entry["PairwiseAcc" if stage == 1 else "MAE"] == trial.objective
            assert {path: entry[path] for path in trial.params} == trial.params
        assert {"finalist"} <= set(titles) or stage == 1


def test_cost_and_provenance_are_the_records(view: RunView, written_page: Page) -> None:
    *_, together = written_page.tables["Cost of the search"]
    every = [*view.trials[1], *view.trials[2]]
    assert together[:3] == ["Total", "11", str(sum(t.epoch for t in every))]
    assert float(together[3]) == pytest.approx(sum(t.utterance_passes for t in every))
    assert float(together[4]) == pytest.approx(sum(t.seconds for t in every))
    facts = dict(written_page.tables["Data, seeds and versions"])
    assert facts["Fingerprint of the data"] == view.info.data.fingerprint
    assert facts["Seed of the search"] == "42"
    assert view.winner is not None
    assert facts["Seed of the winner"] == str(view.winner.seed)
    for name, version in view.info.versions.items():
        assert facts[f"Version: {name}"] == version
    assert [row[1] for row in written_page.tables["Starts of this search"][1:]] == [view.info.starts[0].command]
    assert [row[1:3] for row in written_page.tables["Reads of the test split"][1:]] == [["search", view.info.winner]]
    assert "No trial failed" in written_page.texts["section-failures"]


def test_the_data_of_every_figure_lie_beside_the_page(view: RunView, written: Path, written_page: Page) -> None:
    data = json.loads(written.with_name("report.json").read_text(encoding="utf-8"))
    plots = [plot for section in sections(view, Worth.of(view)) for plot in section.plots]
    assert data["plots"] == json.loads(json.dumps({plot.name: plot.data for plot in plots}))
    assert data["state"] == "finished"
    assert len(plots) > 5
    drawn = [attributes for tag, attributes in written_page.elements if attributes.get("role") == "img"]
    assert {d["data-plot"]: d["aria-label"] for d in drawn} == {plot.name: plot.summary for plot in plots}
    for plot in plots:
        (figure,) = written_page.json_of(data_figure=plot.name)
        assert figure["data"]
        assert "template" not in figure["layout"] and "width" not in figure["layout"]


def test_the_page_needs_nothing_else_and_may_fetch_nothing(written: Path, written_page: Page) -> None:
    content = written.read_bytes()
    assert len(content) < 8_000_000
    for tag, attributes in written_page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    (policy,) = (a["content"] for t, a in written_page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ")
    run = [
        script
        for (_, attributes), script in zip(
            ((t, a) for t, a in written_page.elements if t == "script"), written_page.scripts, strict=True
        )
        if "type" not in attributes
    ]
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in run}
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert "unsafe-eval" not in policy
    assert "script-src 'sha256-" in policy
    assert content.count(b"plotly.js v") == 1


def test_a_reader_without_eyes_finds_the_way(written_page: Page) -> None:
    tags = [tag for tag, _ in written_page.elements]
    assert [tags.count(tag) for tag in ("header", "nav", "main", "h1")] == [1, 1, 1, 1]
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in written_page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [a["aria-labelledby"] for _, a in written_page.elements if "aria-labelledby" in a]
    linked = [(a["href"] or "")[1:] for t, a in written_page.elements if t == "a"]
    assert {*named, *linked} <= set(ids)
    assert written_page.elements[tags.index("body") + 1][1] == {"class": "skip", "href": "#main"}
    assert all("scope" in a for t, a in written_page.elements if t == "th")


def test_strings_of_the_data_are_text(tmp_path: Path) -> None:
    """Whatever ids, texts, names, settings and errors hold: the page has the elements of one with plain strings."""
    pages = {}
    for name, text in (("plain", "plain"), ("hostile", HOSTILE)):
        run = Run(tmp_path / name, text=text).start().trials(1, "cpcdcf").trials(2, "cpc").finish()
        pages[name] = page_of(run.record)
    # Parsing has failed where an element of the data was taken for one of the page.
    kinds = {name: {tag for tag, _ in page.elements} for name, page in pages.items()}
    assert kinds["hostile"] == kinds["plain"]
    assert "img" not in kinds["hostile"]
    for section in ("header", "section-answer", "section-failures", "section-provenance"):
        assert printable(HOSTILE) in pages["hostile"].texts[section], section
    assert all(
        len(page.json_of()) == len([a for t, a in page.elements if "type" in a and t == "script"])
        for page in pages.values()
    )
    first, _ = (block for block in pages["hostile"].json_of() if "columns" in block)
    assert HOSTILE in {value for row in first["rows"] for value in row}


def test_a_running_search_is_told_as_such(tmp_path: Path) -> None:
    settings = {"search.stage1_trials": 10, "search.stage2_trials": 4}
    run = Run(tmp_path / "run", settings=settings).start().trials(1, "cpcrr")
    page = page_of(run.record)
    text = page.texts["section-answer"]
    best = run.record.ranked(1)[0]
    # Nobody holds it, so it cannot be going on.
    assert "This search stopped without" in text
    assert f"3 of 10 trials have ended, 2 more have started. The best so far is trial {best.number}, " in text
    assert f"PairwiseAcc of {best.objective:.4f}." in text
    assert "0 of 4 trials have ended." in text
    with Lease(run.record.place, "test"):
        text = page_of(run.record).texts["section-answer"]
    assert "This search is running. About " in text
    assert "To resume" not in text
    assert "The test split has not been read" in text
    assert "load_model" not in text and "Metrics of the winner" not in page.tables
    assert "The test split has not been read." in page.texts["section-provenance"]


def test_a_search_that_has_only_begun_says_how_to_resume(tmp_path: Path) -> None:
    page = page_of(Run(tmp_path / "run").start("interrupted").record)
    assert "No trial has started." in page.texts["section-search"]
    text = " ".join(page.texts["section-answer"].split())
    assert "This search was interrupted." in text and "0 of 30 trials have ended." in text
    assert "To resume: python -m grcf_ray.search plain" in text


def test_a_search_that_goes_on_after_test_was_read_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").start().trials(1, "cc").trials(2, "cc").finish()
    run.record.update_run(state="running", test_seen=True)
    text = page_of(run.record).texts["section-answer"]
    assert "Test was seen before selection ended" in text
    assert "This search stopped without" in text
    assert "The test split has not been read" not in text
    # Another winner has been saved, and not been measured yet.
    (run.folder / "best" / "metrics.json").unlink()
    assert "The test split has not been read for this winner yet" in page_of(run.record).texts["section-answer"]


def test_retrainings_are_told_by_mean_deviation_and_interval(tmp_path: Path) -> None:
    run = Run(tmp_path / "run").start().trials(1, "c").trials(2, "c").finish(seeds=3)
    seeds = seeds_content("stage2/0")
    seeds["arms"]["winner"]["test"]["mae"]["mean"] = 0.7123456789
    (run.record.place / "seeds" / "metrics.json").write_json(seeds)
    page = page_of(run.record)
    (caption,) = (caption for caption in page.tables if caption.startswith("Winner and starting point"))
    assert page.tables[caption][1] == [
        "MAE",
        "0.7123456789 ± 0.02",
        "0.75 ± 0.02",
        f"-0.05 [{-0.05 - 0.02!r}, {-0.05 + 0.02!r}]",
    ]
    assert "One seed" not in page.texts["section-answer"]
    assert "Too few seeds for a claim: 3" in page.texts["section-answer"]
    assert dict(page.tables["Data, seeds and versions"])["Fresh seeds afterwards"] == "3"


def test_failures_are_told_by_cause_with_the_command_that_repeats_one(tmp_path: Path) -> None:
    run = Run(tmp_path / "a run").start().trials(1, "c" + "d" * 12 + "f")
    _, *rows = page_of(run.record).tables["Failed and diverged trials by cause"]
    again = f"python -m grcf_ray.train --from '{run.folder}' --trial stage1/"
    assert rows == [
        ["not finite", "Stage 1", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more", "plain", f"{again}12"],
        ["error", "Stage 1", "13", "plain", f"{again}13"],
    ]


def test_a_run_of_one_stage(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", settings={"stage1.epochs": 0}).start().trials(2, "cpc").finish()
    page = page_of(run.record)
    assert [row[0] for row in page.tables["Validation gain of each stage"][1:]] == ["2"]
    assert [row[0] for row in page.tables["Cost of the search"][1:]] == ["Stage 2", "Total"]


def test_what_mattered_is_shown_or_said_to_be_unknown(tmp_path: Path) -> None:
    """Early stopping leaves a few whole trials of many."""
    run = Run(tmp_path / "run").start().trials(1, "cccccc").trials(2, "cpppp").finish()
    page = page_of(run.record)
    assert "importance-stage1" in page.texts and "importance-stage2" not in page.texts
    assert re.search(r"Stage 2: .*importances are unknown.*\(1\)", page.texts["section-search"])
    assert "Stage 1: parameter importances are unknown" not in page.texts["section-search"]


def test_a_reader_sees_the_old_page_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run").start().trials(1, "c")
    page = write_report(run.record).local
    assert page == run.folder / "report.html"
    before = {name: (run.folder / name).read_bytes() for name in ("report.html", "report.json")}

    def broken(*arguments: Any) -> Figure:
        raise RuntimeError("no figure")

    view = RunView.read(run.record)
    real = sections(view, None)
    broken_plots = [dataclasses.replace(real[-1].plots[0], draw=broken)]
    monkeypatch.setattr(page_module, "search_plots", lambda view: broken_plots)
    run.trials(1, "cc")
    with pytest.raises(RuntimeError, match="no figure"):
        write_report(run.record)
    assert {name: (run.folder / name).read_bytes() for name in before} == before
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".report")]


def test_what_is_not_a_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run").start().trials(1, "c")
    (first, *_) = sections(RunView.read(run.record), None)[-1].plots
    monkeypatch.setattr(
        page_module, "search_plots", lambda view: [dataclasses.replace(first, data={**first.data, "x": math.nan})]
    )
    with pytest.raises(ValueError, match="Out of range"):
        write_report(run.record)


def test_the_table_that_goes_with_a_figure_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run").start().trials(1, "cc")
    (first, *_) = sections(RunView.read(run.record), None)[-1].plots
    shown = {"columns": ["text", HOSTILE], "rows": [[HOSTILE, 0.123456789]]}
    plot = dataclasses.replace(
        first, title="Pairs", data={**first.data, "table": shown}, warning=HOSTILE, caption=HOSTILE
    )
    monkeypatch.setattr(page_module, "search_plots", lambda view: [plot])
    page = page_of(run.record)
    assert page.tables["Pairs"] == [["text", printable(HOSTILE)], [printable(HOSTILE), "0.123456789"]]
    assert page.texts[first.name].count(printable(HOSTILE)) == 4


def test_the_command_writes_the_page_and_its_data(tmp_path: Path, report: commands.Run) -> None:
    run = Run(tmp_path / "run").start().trials(1, "cpc")
    assert report(run.folder)[:2] == (0, f"Report: {run.folder / 'report.html'}\n")
    assert (
        json.loads((run.folder / "report.json").read_text())["plots"].keys()
        == report_data(view := RunView.read(run.record), sections(view, None))["plots"].keys()
    )
    for name in ("report.html", "report.json"):
        (run.folder / name).unlink()
    out = tmp_path / "elsewhere" / "mine.html"
    assert report(run.folder, "--out", out)[0] == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["mine.html", "report.json"]
    assert report(run.folder, "--out", (tmp_path / "uri" / "mine.html").as_uri())[0] == 0
    assert sorted(path.name for path in (tmp_path / "uri").iterdir()) == ["mine.html", "report.json"]
    assert not (run.folder / "report.html").exists()


def test_the_command_prints_data_or_text_and_writes_nothing(tmp_path: Path, report: commands.Run) -> None:
    run = Run(tmp_path / "run").start().trials(1, "cpc").trials(2, "cc").finish()
    code, out, _ = report(run.folder, "--json")
    printed = json.loads(out)
    assert (code, printed["run"]) == (0, "run") and "history-stage1" in printed["plots"]
    code, out, _ = report(run.folder, "--text")
    assert code == 0 and "Winner: trial stage2/0" in out
    assert not (run.folder / "report.html").exists()


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, report: commands.Run) -> None:
    run = Run(tmp_path / "run").start()
    code, _, err = report(run.folder, "--json", "--text")
    assert code == 2 and "choose one" in err
    assert report(run.folder, "--out", tmp_path / "report.json")[0] == 2
    code, _, err = report(tmp_path)
    assert code == 3 and "not a run" in err
    run.trials(1, "c").trials(2, "c").finish()
    predictions = run.folder / "best" / "predictions" / "test.parquet"
    predictions.write_bytes(predictions.read_bytes()[:100])
    code, _, err = report(run.folder)
    assert code == 3 and f"{predictions}: damaged" in err
    with pytest.raises(DataError):
        write_report(RunRecord(storage_path(tmp_path)))


@pytest.mark.s3
def test_a_run_in_object_storage_has_its_page_there(tmp_path: Path, s3: str) -> None:
    run = Run(tmp_path / "run").start().trials(1, "cpf").trials(2, "c").finish()
    bucket, _, query = s3.partition("?")
    place = storage_path(f"{bucket}/runs/paged?{query}")
    with place.writing_folder() as folder:
        shutil.copytree(run.folder, folder, dirs_exist_ok=True)
    written = write_report(RunRecord(place))
    page = Page(written.read_bytes().decode())
    assert written.name == "report.html"
    assert (place / "report.json").read_json()["state"] == "finished"
    # With the query, which names the server.
    assert f'load_model("{place.uri}")' in page.texts["section-answer"]
    again = f"python -m grcf_ray.train --from {shlex.quote(place.uri)} --trial stage1/2"
    assert again in page.texts["section-failures"]
    assert again in " ".join(text_report(RunView.read(RunRecord(place))).replace("\\\n", " ").split())
