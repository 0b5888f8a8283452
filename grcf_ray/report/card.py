"""The model card, `best/README.md`: what the model is, how it was trained and how it scores, for people and for hubs.

The card is made from the record, so that it can be written again. Its YAML has the test metrics in full, as hubs read
them. Every text from data or commands is escaped. Commands work in the folder where the search ran: their paths are
relative to it, and they hold no key.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grcf_ray.config import RunConfig, flatten
from grcf_ray.data import datasets
from grcf_ray.data.schema import SPLITS, TableInfo
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.report.summary import RunSummary
from grcf_ray.report.terminal import figure
from grcf_ray.report.view import RunView
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import StoragePath, without_keys
from grcf_ray.train.curve import DIRECTIONS, objective_name

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#!|&~$@]|:(?=\S)|(?<=www)\.)")
"""What Markdown, and the variants of GitHub and the hubs, may take for markup, a link or HTML."""
_LIST = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_FULL_WORDS = {"lr": "learning rate", "reg": "regularisation", "mae": "MAE"}
"""Abbreviations in the names of settings and metrics."""
_GOALS = {
    "regression": {
        1: "learns the order of utterances, by an advantage-weighted ranking loss with a margin that grows with the "
        "distance of their groups",
        2: "calibrates the scores by the mean absolute error",
    },
    "classification": {
        1: "separates the two classes by margins",
        2: "calibrates the logits by binary cross-entropy",
    },
}


def write_card(record: RunRecord, info: TableInfo) -> None:
    """Write `best/README.md` from the current record. info: of the run's data."""
    (record.place / "best" / "README.md").write_text(model_card(record, info))


def model_card(record: RunRecord, info: TableInfo) -> str:
    """Return the card of a run whose winner has been measured."""
    view = RunView.read(record)
    assert view.metrics is not None and view.provenance is not None
    summary, best = RunSummary.of(view), record.place / "best"
    saved = (best / "config.json").read_json()
    # Settings that are newer than the run had their default.
    settings = {**flatten(RunConfig()), **view.provenance["settings"]}
    inputs = _inputs(saved)
    low, high = info.label_range
    searched = sorted({*view.info.space.stage1, *view.info.space.stage2})
    place, here = _from_here(best), shlex.quote(_from_here(record.place))
    return _ENVIRONMENT.get_template("card.md").render(
        front=Markup(yaml.safe_dump(_front_matter(view, info, inputs, settings), sort_keys=False, allow_unicode=True)),
        name=record.place.name,
        title=_title(info),
        facts=datasets.find(info.name),
        method=_method(info, settings),
        regression=info.task == "regression",
        low=Markup(f"{low:g}"),
        high=Markup(f"{high:g}"),
        inputs=inputs,
        encoder=_encoder(settings) if "text" in inputs else None,
        language=info.language,
        notes=info.notes,
        summary=summary,
        settings=settings,
        provenance=view.provenance,
        python=_python(saved["modality_dims"], inputs, place),
        predict=f"python -m grcf_ray.predict {shlex.quote(place)} --input new.parquet --output scores.parquet",
        dims=saved["modality_dims"],
        columns=[
            *inputs[: len(inputs) - len(saved["modality_dims"])],
            *(
                f"{name} (for each utterance a list of rows of {dim} values)"
                for name, dim in saved["modality_dims"].items()
            ),
        ],
        context=settings["features.context"],
        data=list(_data(info, view.provenance)),
        stages=[
            {
                "number": stage,
                "goal": _GOALS[info.task][stage],
                "trials": len(trials),
                "epochs": settings[f"stage{stage}.epochs"],
                "direction": DIRECTIONS[stage],
                "metric": METRIC_TITLES[objective_name(stage, info.task)],
            }
            for stage, trials in view.trials.items()
            if trials and settings[f"stage{stage}.epochs"]
        ],
        searched=[(_setting(path), _value(settings[path])) for path in searched if path in settings],
        header=["metric", *summary.metric_columns()],
        metrics=[
            (METRIC_TITLES.get(name) or _words(name), *map(figure, values))
            for name, values in summary.metric_rows(dict.fromkeys([*METRIC_TITLES, *summary.test]))
        ],
        # The brackets of an interval are no link.
        retrained=[tuple(map(Markup, row)) for row in summary.seeds.comparison().text_rows()] if summary.seeds else [],
        remarks=list(_remarks(summary, view.provenance["test_reads"])),
        commands=list(dict.fromkeys(_command(start.command) for start in view.info.starts)),
        checks=[
            f"python -m grcf_ray.evaluate {here}",
            f"python -m grcf_ray.train --from {here} --trial {shlex.quote(view.provenance['trial'])}",
        ],
    )


def escaped(text: object) -> str:
    """Return any text as one line of Markdown that shows it literally."""
    return _LIST.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", _one_line(str(text))))


def _front_matter(view: RunView, info: TableInfo, inputs: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    assert view.metrics is not None
    backbone, test = settings["model.backbone"], view.metrics["test"]
    result = {
        "task": {
            "type": "text-classification",
            "name": "sentiment, regression" if info.task == "regression" else info.task,
        },
        "dataset": {"name": _title(info), "type": info.name, "split": "test"},
        "metrics": [{"type": key, "name": METRIC_TITLES.get(key, key), "value": value} for key, value in test.items()],
    }
    multimodal = ["multimodal"] if len(inputs) > 1 else []
    return {
        **({} if info.language == "unknown" else {"language": info.language}),
        "license": "unknown",
        "library_name": "grcf_ray",
        **({"pipeline_tag": "text-classification"} if inputs == ("text",) else {}),
        **({"base_model": backbone} if "text" in inputs and _is_hub_name(backbone) else {}),
        "tags": ["grcf", "sentiment-analysis", info.task, *multimodal, *inputs],
        "datasets": [info.name],
        "metrics": list(test),
        "model-index": [{"name": view.record.place.name, "results": [result]}],
    }


def _python(dims: Mapping[str, int], inputs: Sequence[str], place: str) -> list[str]:
    load = f"model = load_model({json.dumps(place)})  # this folder or its run, as a path or a URI"
    if not dims:
        return ["from grcf_ray import load_model", "", load, 'model.score(["What a film!", "Never again."])']
    score = f'model.score(pyarrow.parquet.read_table("new.parquet"))  # with the columns {", ".join(inputs)}'
    return ["import pyarrow.parquet", "", "from grcf_ray import load_model", "", load, score]


def _data(info: TableInfo, provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    low, high = info.label_range
    yield "data set", _title(info)
    yield "fingerprint", provenance["data"]["fingerprint"]
    yield from ((f"{split}, utterances", str(info.splits[split])) for split in SPLITS)
    yield "labels", f"{info.task}, {f'{low:g} to {high:g}' if info.task == 'regression' else '0 and 1'}"
    yield "language", info.language
    for name, dim in (("audio", info.audio_dim), ("vision", info.vision_dim)):
        if dim:
            yield name, f"{dim} values a row"
    sources = [f"{source['name']} ({source['sha256']})" for source in provenance["data"]["sources"]]
    yield "files (SHA-256)", ", ".join(sources) or "-"


def _remarks(summary: RunSummary, reads: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from summary.remarks()
    if reads:
        times = "once" if len(reads) == 1 else f"{len(reads)} times"
        yield f"The test split was read {times}, first at {reads[0]['time']}, after the winner was fixed."


def _method(info: TableInfo, settings: Mapping[str, Any]) -> str:
    """Return the method. A stage without epochs did not run."""
    loss = METRIC_TITLES[objective_name(2, info.task)]
    if not settings["stage1.epochs"]:
        return f"{loss} alone, the baseline without a ranking stage"
    if not settings["stage2.epochs"]:
        return "the ranking stage of GRCF alone, its scores uncalibrated"
    return "two-stage group-wise ranking and calibration (GRCF)" + (
        ", in its form for two classes" if info.task == "classification" else ""
    )


def _title(info: TableInfo) -> str:
    facts = datasets.find(info.name)
    return facts.title if facts else info.name


def _inputs(saved: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that the model reads."""
    return (*(() if saved["backbone"] is None else ("text",)), *saved["modality_dims"])


def _encoder(settings: Mapping[str, Any]) -> str:
    """Return a hub name, or the name of a folder without its path, which is private."""
    backbone: str = settings["model.backbone"]
    return backbone if _is_hub_name(backbone) else Path(backbone).name


def _is_hub_name(backbone: str) -> bool:
    return bool(_HUB_NAME.fullmatch(backbone)) and not Path(backbone).exists()


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _from_here(place: StoragePath) -> str:
    """Return a place relative to the working directory, or its URI without keys."""
    return _one_line(without_keys(place.uri) if place.local is None else os.path.relpath(place.local))


def _command(command: str) -> str:
    """Return a recorded command, quoted for the shell, with relative paths and without keys."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return shlex.join(_word(_one_line(word)) for word in words)


def _word(word: str) -> str:
    # The value of PATH=VALUE may be a path too.
    name, equals, value = word.partition("=")
    if equals and name and "/" not in name:
        return f"{name}={_word(value)}"
    path = word.removeprefix("file://")
    return os.path.relpath(path) if path.startswith("/") else without_keys(word)


def _setting(path: str) -> str:
    """Return a setting in words: `stage1.head_lr` is the head learning rate of Stage 1."""
    section, _, name = path.rpartition(".")
    stage = {"stage1": " of Stage 1", "stage2": " of Stage 2"}.get(section, "")
    return _words(name) + stage


def _words(name: str) -> str:
    return " ".join(_FULL_WORDS.get(word, word) for word in name.split("_"))


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _literal(value: object) -> Markup:
    return value if isinstance(value, Markup) else Markup(escaped(value))


def _fenced(lines: Sequence[str], language: str = "sh") -> Markup:
    """Return a code block that no backticks in it can end."""
    runs = [len(run) for line in lines for run in re.findall("`+", line)]
    fence = "`" * max(3, 1 + max(runs, default=0))
    return Markup("\n".join([f"{fence}{language}", *lines, fence]))


def _table(rows: Iterable[Sequence[str]], header: Sequence[str]) -> Markup:
    head, *body = [f"| {' | '.join(map(_literal, row))} |" for row in (header, *rows)]
    return Markup("\n".join([head, "|" + "---|" * len(header), *body]))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


_ENVIRONMENT = Environment(
    loader=PackageLoader("grcf_ray.report"),
    autoescape=True,
    finalize=_literal,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {"fenced": _fenced, "listed": _listed, "table": _table}
