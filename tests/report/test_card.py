"""The model card: what hubs read of it, what people read of it, and that no name in it is taken for markup."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from markdown_it import MarkdownIt
from report.stored import change, seeds_content

from grcf_ray.data.datasets import get
from grcf_ray.data.schema import Source, TableInfo
from grcf_ray.data.store import DatasetStore
from grcf_ray.report.card import escaped, model_card, write_card
from grcf_ray.report.summary import RunSummary
from grcf_ray.report.view import RunView
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from tests.conftest import Recorded

STORED = Path(__file__).parents[1] / "stored" / "run-1"
HOSTILE = [
    "<script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](https://evil.example/x.png)",
    "https://evil.example/a www.evil.example me@evil.example",
    "a | b | c",
    "``` \n# heading\n---\n- item\n\n    code",
    "1) item",
    "*bold* _it_ ~~gone~~ `code` &lt; $x$ \\| \\",
    "\x1b[31mred\x00\u202e\u2028",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that an earlier release has left: regression with text and audio."""
    return Path(shutil.copytree(STORED, tmp_path / "run"))


@pytest.fixture
def info(tiny_store: DatasetStore) -> TableInfo:
    return tiny_store.info


def card_of(folder: Path, info: TableInfo) -> tuple[dict[str, Any], str]:
    """What stands in front, and the rest."""
    text = model_card(RunRecord(storage_path(folder)), info)
    assert text.startswith("---\n")
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(front), body


def rendered(body: str) -> str:
    """As HTML, by a reader that lets HTML through: what is markup shows."""
    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(body))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


def tags_of(body: str) -> list[str]:
    parser = _Tags()
    parser.feed(rendered(body))
    return parser.tags


@pytest.mark.integration
def test_a_search_writes_it(recorded: Recorded) -> None:
    record = RunRecord(storage_path(recorded.folder))
    text = (recorded.folder / "best" / "README.md").read_text()
    assert text == model_card(record, DatasetStore.open(recorded.data).info)
    front = yaml.safe_load(text.removeprefix("---\n").split("\n---\n", 1)[0])
    (result,) = front["model-index"][0]["results"]
    test = json.loads((recorded.folder / "best" / "metrics.json").read_text())["test"]
    assert {figure["type"]: figure["value"] for figure in result["metrics"]} == test
    assert result["dataset"]["split"] == "test"
    assert front["metrics"] == list(test)
    assert "The test split was read once" in text


def test_hubs_read_the_figures(folder: Path, info: TableInfo) -> None:
    """By their own client, to the last digit."""
    from huggingface_hub import ModelCard

    write_card(RunRecord(storage_path(folder)), info)
    card = ModelCard.load(folder / "best" / "README.md")
    test = json.loads((folder / "best" / "metrics.json").read_text())["test"]
    results: Any = card.data.eval_results
    assert {result.metric_type: result.metric_value for result in results} == test
    assert {(result.dataset_type, result.dataset_split) for result in results} == {("tiny", "test")}
    assert card.data.library_name == "grcf_ray"
    assert card.data.license == "unknown"
    assert card.data.language is None and card.data.base_model is None
    assert {"regression", "multimodal", "text", "audio"} <= set(card.data.tags or ())


def test_what_people_read(folder: Path, info: TableInfo) -> None:
    _, body = card_of(folder, info)
    metrics, run, provenance, config = (
        json.loads((folder / path).read_text())
        for path in ("best/metrics.json", "run.json", "best/provenance.json", "best/config.json")
    )
    row = next(line for line in body.splitlines() if line.startswith("| MAE |"))
    figures = [metrics["valid"], metrics["test"], metrics["baselines"][0]["test"]]
    assert row == f"| MAE | {' | '.join(format(split['mae'], '.4f') for split in figures)} |"
    assert "| metric | valid | test | ridge regression, test |" in body
    for path in {*run["space"]["stage1"], *run["space"]["stage2"]}:
        value = config["settings"][path]
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        assert path not in body
        assert f" | {shown} |\n" in body
    assert "| head learning rate of Stage 1 | " in body and "| fusion dropout | " in body
    assert f"fingerprint | {provenance['data']['fingerprint']} |" in body
    assert "| train, utterances | 48 |" in body and "| test, utterances | 16 |" in body
    assert "6 trials of up to 3 epochs to maximise validation PairwiseAcc." in body
    assert "5 trials of up to 3 epochs to minimise validation MAE." in body
    assert "python -m grcf_ray.search --dataset tiny --data '{data}'" in body
    assert f"| torch | {provenance['versions']['torch']} |" in body
    assert "columns text and audio (for each utterance a list of rows of 5 values)" in body
    assert "label units, which lie in [-3, 3]" in body
    assert "Test was seen" not in body and "fresh seeds" not in body


def test_how_to_load_it_is_true(folder: Path, info: TableInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of Python are run as they stand, where the search ran."""
    import pyarrow.parquet as pq

    monkeypatch.chdir(folder.parent)
    _, body = card_of(folder, info)
    assert 'load_model("run/best")' in body and "python -m grcf_ray.predict run/best --input" in body
    (code,) = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    rows = {"text": ["the film was great"], "audio": [[[1.0] * 5]]}
    import pyarrow as pa

    pq.write_table(pa.table(rows), folder.parent / "new.parquet")
    *lines, last = code.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    assert eval(last, names).shape == (1,)


def test_commands_work_where_the_search_ran(
    folder: Path, info: TableInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No absolute path is in them, and no key; what the shell would take apart is quoted."""
    moved = Path(shutil.move(folder, tmp_path / "runs" / "my run"))
    words = ["python", "-m", "grcf_ray.search", "--data", str(tmp_path / "my data.csv"), f"--space={tmp_path}/a.yaml"]
    words += ["--set", f"model.backbone={tmp_path}/encoder", "--label-range", "-3", "3", "--name", "my run"]
    words += ["--storage", "s3://me:secret/1@bucket/runs?region=eu&secret_key=abc"]
    change(moved / "run.json", starts=[{"time": "", "command": shlex.join(words)}])
    monkeypatch.chdir(tmp_path)
    _, body = card_of(moved, info)
    assert str(tmp_path) not in body and "secret" not in body
    assert "python -m grcf_ray.evaluate 'runs/my run'\n" in body
    assert "python -m grcf_ray.train --from 'runs/my run' --trial stage2/4\n" in body
    (line,) = [line for line in body.splitlines() if line.startswith("python -m grcf_ray.search")]
    expected = "--data 'my data.csv' --space=a.yaml --set model.backbone=encoder --label-range -3 3 --name 'my run'"
    assert line == f"python -m grcf_ray.search {expected} --storage 's3://bucket/runs?region=eu'"


def test_seeds_stand_in_it_once_they_are_there(folder: Path, info: TableInfo) -> None:
    (folder / "seeds").mkdir()
    (folder / "seeds" / "metrics.json").write_text(json.dumps(seeds_content("stage2/4")))
    _, body = card_of(folder, info)
    assert "### Under 3 fresh seeds" in body
    assert "| MAE | 0.7000 ± 0.0200 | 0.7500 ± 0.0200 | -0.0500 [-0.0700, -0.0300] |" in body
    assert "\nToo few seeds for a claim: 3" in body
    # Those of another winner are none of its.
    change(folder / "seeds" / "metrics.json", winner="stage2/3")
    assert "fresh seeds" not in card_of(folder, info)[1]


def test_what_speaks_against_the_figures(folder: Path, info: TableInfo) -> None:
    facts = get("mosi")
    change(folder / "run.json", test_seen=True)
    change(
        folder / "best" / "metrics.json", paper=dict(facts.paper_results), not_comparable=["no vision", "split of 9"]
    )
    reads = json.loads((folder / "best" / "provenance.json").read_text())["test_reads"]
    change(folder / "best" / "provenance.json", test_reads=reads * 3)
    front, body = card_of(folder, dataclasses.replace(info, name="mosi", language="en"))
    for remark in RunSummary.of(RunView.read(RunRecord(storage_path(folder)))).remarks():
        assert f"- {escaped(remark)}\n" in body
    assert "Test was seen before" in body and "Paper: not comparable" in body
    assert "- The test split was read 3 times, first at" in body
    assert re.search(r"\| MAE \|.*\| 0.5810 \|\n", body)
    assert escaped(facts.citation) in body
    assert (front["language"], front["datasets"]) == ("en", ["mosi"])


@pytest.mark.parametrize(
    ("backbone", "base", "named"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "/all-MiniLM-L6-v2"),
        ("/home/somebody/models/mine", None, " mine."),
        ("a/b/c", None, " c."),
    ],
)
def test_the_encoder_is_a_hubs_or_a_folder(
    folder: Path, info: TableInfo, backbone: str, base: str | None, named: str
) -> None:
    path = folder / "best" / "provenance.json"
    settings = json.loads(path.read_text())["settings"]
    change(path, settings={**settings, "model.backbone": backbone})
    front, body = card_of(folder, info)
    assert front.get("base_model") == base
    assert named in body and "somebody" not in body


@pytest.mark.parametrize(
    ("without", "what"),
    [
        (1, "A model of MAE alone, the baseline without a ranking stage on tiny."),
        (2, "A model of the ranking stage of GRCF alone, its scores uncalibrated on tiny."),
        (3, "A model of two-stage group-wise ranking and calibration (GRCF) on tiny."),
    ],
)
def test_a_stage_without_epochs_was_none(folder: Path, info: TableInfo, without: int, what: str) -> None:
    path = folder / "best" / "provenance.json"
    settings = json.loads(path.read_text())["settings"]
    if without in (1, 2):
        change(path, settings={**settings, f"stage{without}.epochs": 0})
    _, body = card_of(folder, info)
    assert what in body
    assert [f"- **Stage {stage}**" in body for stage in (1, 2)] == [without != 1, without != 2]


def test_two_classes(folder: Path, info: TableInfo) -> None:
    test = {"bce": 0.5, "acc2": 0.75, "auroc": 0.8125}
    metrics = {"trial": "stage2/4", "valid": test, "test": test, "threads": 1}
    metrics |= {"baselines": [], "paper": {}, "not_comparable": []}
    (folder / "best" / "metrics.json").write_text(json.dumps(metrics))
    change(folder / "best" / "config.json", modality_dims={})
    front, body = card_of(folder, dataclasses.replace(info, task="classification", label_range=(0.0, 1.0)))
    assert front["pipeline_tag"] == "text-classification"
    assert "classification" in front["tags"] and "multimodal" not in front["tags"]
    assert "the logit of the positive class" in body
    assert "| Acc2 | 0.7500 | 0.7500 |" in body
    assert 'model.score(["What a film!", "Never again."])' in body


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_is_shown_as_it_is(text: str) -> None:
    """In a line and in the cell of a table."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    assert rendered(f"It is {escaped(text)}.").strip() == f"<p>It is {html.escape(plain)}.</p>"
    table = rendered(f"| a | b |\n|---|---|\n| {escaped(text)} | last |\n")
    assert re.findall(r"<td>(.*?)</td>", table) == [html.escape(plain).strip(), "last"]
    assert "\x1b" not in escaped(text) and "\u202e" not in escaped(text)
    # Some readers make links of bare addresses.
    assert not re.search(r"(?<!\\)://|www\.|\w@", escaped(text))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_change_nothing_but_themselves(tmp_path: Path, info: TableInfo, text: str) -> None:
    """Everywhere that data, files and commands have their say: the same tags as with a harmless name."""
    cards = []
    for name in (text.replace("/", "_").replace("\x00", ""), "harmless"):
        folder = Path(shutil.copytree(STORED, tmp_path / str(len(cards)) / name))
        provenance = json.loads((folder / "best" / "provenance.json").read_text())
        said = text if not cards else "harmless"
        provenance["data"]["sources"][0]["name"] = said
        provenance["versions"]["python"] = said
        provenance["settings"]["model.backbone"] = said
        (folder / "best" / "provenance.json").write_text(json.dumps(provenance))
        change(folder / "best" / "metrics.json", paper={"mae": 0.5}, not_comparable=[said])
        start = {"time": "2026-11-01T00:00:00+00:00", "command": f"python -m grcf_ray.search --name {said}"}
        change(folder / "run.json", starts=[start])
        sources = (Source(name=said, sha256="0"),)
        changed = dataclasses.replace(info, name=said, notes=(said,), sources=sources, language=said)
        cards.append((name, card_of(folder, changed)))
    (name, (front, body)), (_, (_, harmless)) = cards
    assert front["model-index"][0]["name"] == name
    assert front["datasets"] == [text]
    assert tags_of(body) == tags_of(harmless)
    assert "\x1b" not in body and "\u202e" not in body
