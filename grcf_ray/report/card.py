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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grcf_ray.config import RunConfig, flatten
from grcf_ray.console import spaced
from grcf_ray.data import datasets
from grcf_ray.data.schema import TableInfo
from grcf_ray.metrics import METRIC_TITLES, metric_title
from grcf_ray.model.card import card_of
from grcf_ray.report.summary import RunSummary
from grcf_ray.report.terminal import figure
from grcf_ray.report.view import RunView
from grcf_ray.search.record import RunRecord
from grcf_ray.storage import StoragePath, without_keys

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#!|&~$@]|:(?=\S)|(?<=www)\.)")
"""What Markdown, and the variants of GitHub and the hubs, may take for markup, a link or HTML."""
_LIST = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_FULL_WORDS = {"lr": "learning rate", "reg": "regularisation", "mae": "MAE"}
"""Abbreviations in the names of settings and metrics."""


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
    text, dims = [] if saved["backbone"] is None else ["text"], saved["modality_dims"]
    inputs, place = [*text, *dims], _from_here(best)
    searched = sorted({*view.info.space.stage1, *view.info.space.stage2})
    return _ENVIRONMENT.get_template("card.md").render(
        front=Markup(yaml.safe_dump(_front_matter(view, info, inputs, settings), sort_keys=False, allow_unicode=True)),
        view=view,
        summary=summary,
        provenance=view.provenance,
        info=info,
        regression=info.task == "regression",
        title=_title(info),
        facts=datasets.find(info.name),
        titles=METRIC_TITLES,
        settings=settings,
        model=card_of(settings["model.name"]),
        stages=[stage for stage, trials in view.trials.items() if trials and settings[f"stage{stage}.epochs"]],
        inputs=inputs,
        columns=[*text, *(f"{name} (for each utterance a list of rows of {dim} values)" for name, dim in dims.items())],
        dims=dims,
        encoder=_encoder(settings),
        # Code is shown as it is.
        quoted_place=Markup(json.dumps(place)),
        shell_place=Markup(shlex.quote(place)),
        here=Markup(shlex.quote(_from_here(record.place))),
        searched=[(_setting(path), _value(settings[path])) for path in searched if path in settings],
        metrics=[
            (metric_title(name), *map(figure, values))
            for name, values in summary.metric_rows(dict.fromkeys([*METRIC_TITLES, *summary.test]))
        ],
        # The brackets of an interval are no link.
        retrained=[tuple(map(Markup, row)) for row in summary.seeds.comparison().text_rows()] if summary.seeds else [],
        commands=list(dict.fromkeys(_command(start.command) for start in view.info.starts)),
    )


def escaped(text: object) -> str:
    """Return any text as one line of Markdown that shows it literally."""
    return _LIST.sub(r"\1\\\2", _MARKUP.sub(r"\\\1", spaced(str(text))))


def _front_matter(view: RunView, info: TableInfo, inputs: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    assert view.metrics is not None
    backbone, test = settings["model.backbone"], view.metrics["test"]
    result = {
        "task": {
            "type": "text-classification",
            "name": "sentiment, regression" if info.task == "regression" else info.task,
        },
        "dataset": {"name": _title(info), "type": info.name, "split": "test"},
        "metrics": [{"type": key, "name": metric_title(key), "value": value} for key, value in test.items()],
    }
    multimodal = ["multimodal"] if len(inputs) > 1 else []
    return {
        **({} if info.language == "unknown" else {"language": info.language}),
        "license": "unknown",
        "library_name": "grcf_ray",
        **({"pipeline_tag": "text-classification"} if inputs == ["text"] else {}),
        **({"base_model": backbone} if "text" in inputs and _is_hub_name(backbone) else {}),
        "tags": ["grcf", "sentiment-analysis", info.task, *multimodal, *inputs],
        "datasets": [info.name],
        "metrics": list(test),
        "model-index": [{"name": view.record.place.name, "results": [result]}],
    }


def _title(info: TableInfo) -> str:
    facts = datasets.find(info.name)
    return facts.title if facts else info.name


def _encoder(settings: Mapping[str, Any]) -> str:
    """Return a hub name, or the name of a folder without its path, which is private."""
    backbone: str = settings["model.backbone"]
    return backbone if _is_hub_name(backbone) else Path(backbone).name


def _is_hub_name(backbone: str) -> bool:
    return bool(_HUB_NAME.fullmatch(backbone)) and not Path(backbone).exists()


def _from_here(place: StoragePath) -> str:
    """Return a place relative to the working directory, or its URI without keys."""
    return spaced(without_keys(place.uri) if place.local is None else os.path.relpath(place.local))


def _command(command: str) -> str:
    """Return a recorded command, quoted for the shell, with relative paths and without keys."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return shlex.join(_word(spaced(word)) for word in words)


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


def _fenced(text: str, language: str = "sh") -> Markup:
    """Return a code block that no backticks in it can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup("\n".join([f"{fence}{language}", text.strip("\n"), fence]))


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
