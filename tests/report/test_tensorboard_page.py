"""TensorBoard's own server and page on a search: what they show is what the record says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from browser import chromium, severe
from report.predictions import write_predictions
from waiting import wait_for

from grcf_ray.report.tensorboard import TensorBoardListener
from grcf_ray.search.events import SearchFinished, SearchStarted, StageStarted
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.page

STAGES: tuple[Literal[1, 2], ...] = (1, 2)
OBJECTIVES = {1: "best/pairwise_acc", 2: "best/mae"}
WEBGL = (
    # The projector draws in WebGL, here without a GPU.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--window-size=1500,1000",
)
SEEN = """
const parts = [];
const walk = node => {
  if (node.nodeType === Node.TEXT_NODE) parts.push(node.data);
  if (["NOSCRIPT", "SCRIPT", "STYLE", "TEMPLATE"].includes(node.nodeName)) return;
  if (node.shadowRoot) walk(node.shadowRoot);
  if (node.contentDocument?.body) walk(node.contentDocument.body);
  node.childNodes.forEach(walk);
};
if (document.body) walk(document.body);
return parts.join(" ");
"""
"""All text of the page, that of its components and frames included."""
IMAGES = """
const sizes = [];
const walk = root => root.querySelectorAll("*").forEach(node => {
  if (node.tagName === "IMG" && node.naturalWidth) sizes.push([node.naturalWidth, node.naturalHeight]);
  if (node.shadowRoot) walk(node.shadowRoot);
});
walk(document);
return sizes;
"""
"""Width and height of every image that has come."""


class Server:
    """`tensorboard --logdir` on a port of its own."""

    def __init__(self, logdir: Path, log: Path, runs: int) -> None:
        words = ["-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0", "--load_fast=false"]
        # It answers once it has read everything.
        words += ["--reload_task=blocking", "--reload_interval=0"]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, *words], stdout=output, stderr=output, start_new_session=True
            )
        self.url = wait_for(lambda: re.search(r"http://\S+?:\d+", log.read_text()), "TensorBoard to start")[0]
        wait_for(lambda: len(self.get("data/runs")) == runs, f"TensorBoard to read {runs} runs")

    def get(self, path: str, **query: str) -> Any:
        """What it answers."""
        return json.loads(self.read(path, **query))

    def read(self, path: str, **query: str) -> str:
        """What it answers, as it is."""
        with urllib.request.urlopen(f"{self.url}/{path}?{urllib.parse.urlencode(query)}") as answer:
            return str(answer.read().decode())

    def ask(self, path: str, **question: Any) -> Any:
        """What it answers to JSON."""
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A recorded search, of which a text is hostile."""
    folder = tmp_path_factory.mktemp("shown") / "recorded"
    stored = Path(__file__).parents[1] / "stored" / "run-2"
    shutil.copytree(stored, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    record = RunRecord(storage_path(folder))
    write_predictions(record, "test")
    with TensorBoardListener(record) as listener:
        listener(SearchStarted(1, {1: (6, 3), 2: (5, 3)}))
        for stage in STAGES:
            listener(StageStarted(stage, 6, 3, tuple(record.trials(stage))))
        listener(SearchFinished())
    return record


@pytest.fixture(scope="module")
def server(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    trials = sum(len(record.trials(stage)) for stage in STAGES)
    assert record.place.local
    # The trials, a summary of each stage, the best model and the search as a whole.
    server = Server(record.place.local.parent, tmp_path_factory.mktemp("server") / "log", trials + 4)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("chromium"), *WEBGL) as driver:
        yield driver


def shown(browser: Chrome, server: Server, tab: str, *texts: str) -> None:
    """Open a tab, and wait until it has these texts."""
    browser.get("about:blank")
    browser.get(f"{server.url}/#{tab}")

    def lacking() -> list[str]:
        seen: str = browser.execute_script(SEEN)
        return [text for text in texts if text not in seen]

    wait_for(lambda: not lacking(), f"{tab} to show {texts}")


def sessions(server: Server) -> dict[str, dict[str, Any]]:
    """The rows of the HParams tab by their names."""
    columns = [{"metric": {"tag": tag, "group": ""}} for tag in OBJECTIVES.values()]
    answer = server.ask(
        "data/plugin/hparams/session_groups",
        experimentName="",
        allowedStatuses=["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        colParams=columns,
        startIndex=0,
        sliceSize=100,
    )
    return {group["name"]: group for group in answer["sessionGroups"]}


def test_there_is_a_row_for_each_trial_with_its_parameters_and_objective(server: Server, record: RunRecord) -> None:
    rows = sessions(server)
    trials = [trial for stage in STAGES for trial in record.trials(stage)]
    assert rows.keys() == {f"stage{trial.stage}/{trial.number} recorded" for trial in trials}
    for trial in trials:
        row = rows[f"stage{trial.stage}/{trial.number} recorded"]
        values = {metric["name"]["tag"]: metric["value"] for metric in row["metricValues"]}
        assert values[OBJECTIVES[trial.stage]] == pytest.approx(trial.objective, rel=1e-6)
        for name, value in trial.params.items():
            assert row["hparams"][name] == (int(value) if name == "finalist" else value)
        assert row["sessions"][0]["status"] == "STATUS_SUCCESS"


def test_the_projector_has_a_line_for_each_utterance(server: Server, record: RunRecord) -> None:
    finalists = [f"finalist {number}, z_final of valid" for number in record.read_run()["finalists"]]
    assert len(finalists) == 2
    run = "recorded/tensorboard/best"
    assert server.get("data/plugin/projector/runs") == [run]
    embeddings = server.get("data/plugin/projector/info", run=run)["embeddings"]
    shapes = {embedding["tensorName"]: embedding["tensorShape"] for embedding in embeddings}
    assert shapes == {"z_final of test": [16, 8], **{name: [16, 32] for name in finalists}}
    for name in shapes:
        lines = server.read("data/plugin/projector/metadata", run=run, name=name).splitlines()
        assert len(lines) == 17
        assert all(line.count("\t") == 3 for line in lines)


def test_every_tab_shows_the_search(server: Server, browser: Chrome, record: RunRecord) -> None:
    shown(browser, server, "timeseries", "recorded/tensorboard/stage1/0000", "/mae", "/overshoot")
    trials = [trial for stage in STAGES for trial in record.trials(stage)]
    names = [f"stage{trial.stage}/{trial.number} recorded" for trial in trials]
    objectives = [f"{trial.objective:.5g}" for trial in trials]
    shown(browser, server, "hparams", "best valid/pairwise_acc", "ranking.base_margin", *names, *objectives)
    shown(browser, server, "images", "predictions/test", "confusion/test")
    wait_for(lambda: browser.execute_script(IMAGES).count([704, 624]) == 2, "both images")
    shown(browser, server, "projector", "z_final of test", "16x8", "utterances.tsv")
    # No text of an utterance has run.
    assert browser.title == "TensorBoard"
    assert severe(browser) == []
