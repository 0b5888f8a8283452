"""The model card, `best/README.md`: what the model is, how it came about and what it scores, for people and for hubs.

Everything is read from the record, so that the card can be written again whenever that has grown. YAML in front of it
has the test figures in full, as hubs read them. Whatever comes from data or from a command is escaped. Commands work in
the folder where the search ran, from which they have their paths; there is no absolute path and no key in them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grcf_ray.config import RunConfig, flatten
from grcf_ray.console import sentence
from grcf_ray.data import datasets
from grcf_ray.data.schema import SPLITS, TableInfo
from grcf_ray.metrics import METRIC_TITLES, acc_whole_note
from grcf_ray.search.comparisons import baseline_kind, baseline_remarks, few_retrainings, retrainings
from grcf_ray.search.record import RunRecord
from grcf_ray.search.schema import MetricsFile, ProvenanceFile, read_file
from grcf_ray.storage import StoragePath, without_keys
from grcf_ray.train.curve import DIRECTIONS, objective_name

_MARKUP = re.compile(r"([\\`*_{}\[\]()<>#!|&~$:@]|(?<=www)\.)")
"""What Markdown, or GitHub's and the hubs' kinds of it, might take for markup, a link or HTML."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_SPELT = {"lr": "learning rate", "reg": "regularisation", "mae": "MAE"}
"""Words of settings' names that are cut short."""
_PAPER = (
    "The method: *GRCF, a Two-Stage Group-wise Ranking and Calibration Framework for multimodal sentiment analysis*. "
    "Its equations, and where this implementation had to choose, are in grcf_ray."
)


def write_card(record: RunRecord, info: TableInfo) -> None:
    """Write `best/README.md` as the record has it by now. info: of the run's data."""
    (record.place / "best" / "README.md").write_text(model_card(record, info))


def model_card(record: RunRecord, info: TableInfo) -> str:
    """The card of a run whose winner has been measured."""
    best = record.place / "best"
    run = record.read_search()
    metrics, provenance = (
        read_file(best / "metrics.json", MetricsFile),
        read_file(best / "provenance.json", ProvenanceFile),
    )
    saved = (best / "config.json").read_json()
    seeds = retrainings(record, metrics["trial"])
    counts = {stage: len(record.trials(stage)) for stage in (1, 2)}
    # A setting that came after the run was begun had its default.
    settings = {**flatten(RunConfig()), **provenance["settings"]}
    parts = [
        _head(record.place.name, info, metrics, saved, settings),
        _use(info, saved, settings, _from_here(best)),
        _data(info, provenance),
        _training(run, info, provenance, settings, counts),
        _evaluation(run, info, metrics, provenance, sum(counts.values())),
        *([_seeds(seeds)] if seeds else []),
        _again(run, _from_here(record.place), provenance),
        _citation(info),
    ]
    return _front_matter(record.place.name, info, metrics, saved, settings) + "\n" + "\n".join(parts)


def escaped(text: object) -> str:
    """Any text as one line of Markdown that shows it as it is: no markup, no HTML, no link, no control codes."""
    return _MARKUP.sub(r"\\\1", _one_line(str(text)))


def _front_matter(
    name: str, info: TableInfo, metrics: Mapping[str, Any], saved: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    modalities = _inputs(saved)
    backbone = settings["model.backbone"]
    facts = datasets.find(info.name)
    task = {
        "type": "text-classification",
        "name": f"sentiment, {info.task}" if info.task == "regression" else info.task,
    }
    figures = [
        {"type": key, "name": METRIC_TITLES.get(key, key), "value": value} for key, value in metrics["test"].items()
    ]
    known: dict[str, Any] = {
        **({} if info.language == "unknown" else {"language": info.language}),
        "license": "unknown",
        "library_name": "grcf_ray",
        **({"pipeline_tag": "text-classification"} if modalities == ("text",) else {}),
        **({"base_model": backbone} if "text" in modalities and _is_hub_name(backbone) else {}),
        "tags": [
            "grcf",
            "sentiment-analysis",
            info.task,
            *(["multimodal"] if len(modalities) > 1 else []),
            *modalities,
        ],
        "datasets": [info.name],
        "metrics": list(metrics["test"]),
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": task,
                        "dataset": {"name": facts.title if facts else info.name, "type": info.name, "split": "test"},
                        "metrics": figures,
                    }
                ],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---\n"


def _head(
    name: str, info: TableInfo, metrics: Mapping[str, Any], saved: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    low, high = info.label_range
    inputs = _inputs(saved)
    reads, made = _listed(inputs), "without a text encoder"
    if "text" in inputs:
        made = f"of the text encoder {escaped(_encoder(settings))}"
    gives = (
        f"a score in the units of the labels, which lie in [{low:g}, {high:g}]; a score may lie a little beyond"
        if info.task == "regression"
        else "the logit of the positive class, above 0 where it is the likelier"
    )
    return f"""# {escaped(name)}

A model of {_what(info, settings)} on {escaped(_title(info))}. It reads the {reads} of an utterance and gives {gives}.
It was made {made}, and trained and chosen by a search with grcf_ray: it is trial {escaped(metrics["trial"])}.
"""


def _use(info: TableInfo, saved: Mapping[str, Any], settings: Mapping[str, Any], best: str) -> str:
    dims: Mapping[str, int] = saved["modality_dims"]
    if dims:
        columns = [
            *(["text"] if "text" in _inputs(saved) else []),
            *(f"{name} (for each utterance a list of rows of {dim} values)" for name, dim in dims.items()),
        ]
        call = f'model.score(pyarrow.parquet.read_table("new.parquet"))  # with the columns {", ".join(_inputs(saved))}'
        imported, needs = "import pyarrow.parquet", f"It needs the columns {_listed(columns)}."
    else:
        call, imported, needs = 'model.score(["What a film!", "Never again."])', "", "It needs a column text."
    context = " A column context, what was said before, is put in front of the text." * bool(
        settings["features.context"]
    )
    spoken = (
        f"of language {escaped(info.language)}" if info.language != "unknown" else "of its training data's language"
    )
    lines = [
        *([imported, ""] if imported else []),
        "from grcf_ray import load_model",
        "",
        f"model = load_model({json.dumps(best)})  # this folder or its run, as a path or a URI",
        call,
    ]
    scores = f"python -m grcf_ray.predict {shlex.quote(best)} --input new.parquet --output scores.parquet"
    python, shell = ("\n".join(_fenced(block, kind)) for block, kind in ((lines, "python"), ([scores], "sh")))
    return f"""## Use

This folder is all that it takes; the run, its data and the encoder's files are not needed. Paths are those from where
the search ran.

{python}

From the command line, for tables of any size and the formats of multimodal data sets:

{shell}

{needs}{context} Each row of the output has the score and the {"group" if info.task == "regression" else "class"} it is
of.

**Meant for** research on utterances like those that it was trained on: {spoken}, from the source named below.

**Limits.** Of a text, {settings["features.max_tokens"]} subwords are read. Figures on one data set do not carry over to
another source, language or way of extracting features: measure first (`python -m grcf_ray.evaluate RUN --on NAME`). The
model takes over what its annotators and its text encoder lean to, and says nothing reliable about a single person;
nothing should be decided about people by its scores alone. Its licence hangs on those of the data and of the encoder,
and is for whoever passes it on to state.
"""


def _data(info: TableInfo, provenance: Mapping[str, Any]) -> str:
    facts = datasets.find(info.name)
    sources = [f"{escaped(source['name'])} ({source['sha256']})" for source in provenance["data"]["sources"]]
    low, high = info.label_range
    rows = [
        ("data set", escaped(_title(info))),
        ("fingerprint", escaped(provenance["data"]["fingerprint"])),
        *((f"{split}, utterances", str(info.splits[split])) for split in SPLITS),
        ("labels", f"{info.task}, {f'{low:g} to {high:g}' if info.task == 'regression' else '0 and 1'}"),
        ("language", escaped(info.language)),
        *(
            (name, f"{dim} values a row")
            for name, dim in (("audio", info.audio_dim), ("vision", info.vision_dim))
            if dim
        ),
        ("files (SHA-256)", ", ".join(sources) or "-"),
    ]
    notes = [f"- {escaped(note)}" for note in info.notes]
    said = [f"Collected by: {escaped(facts.citation)}.", ""] if facts else []
    return "\n".join(["## Training data", "", *_table(("", ""), rows), "", *said, *notes, *([""] if notes else [])])


def _training(
    run: Mapping[str, Any],
    info: TableInfo,
    provenance: Mapping[str, Any],
    settings: Mapping[str, Any],
    counts: Mapping[int, int],
) -> str:
    learns = {
        1: "learns the order of utterances, by an advantage-weighted ranking loss with a margin that grows with the "
        "distance of their groups",
        2: "calibrates the scores by the mean absolute error",
    }
    if info.task == "classification":
        learns = {1: "separates the two classes by margins", 2: "calibrates the logits by binary cross-entropy"}
    lines = []
    for stage, trials in counts.items():
        if settings[f"stage{stage}.epochs"] and trials:
            metric = METRIC_TITLES[objective_name(stage, info.task)]
            lines.append(
                f"- **Stage {stage}** {learns[stage]}: {trials} trials of up to {settings[f'stage{stage}.epochs']} "
                f"epochs to {DIRECTIONS[stage]}imise validation {metric}."
            )
    if len(lines) == 2:
        lines.append("- The best checkpoints of Stage 1 were those that Stage 2 started from.")
    searched = sorted({*run["space"].get("stage1", {}), *run["space"].get("stage2", {})})
    rows = [(_setting(path), escaped(_figure_of(settings[path]))) for path in searched if path in settings]
    return "\n".join(
        [
            "## Training procedure",
            "",
            "Searched with Optuna's TPE, hopeless trials stopped early by ASHA; chosen on the validation split alone.",
            "",
            *lines,
            "",
            f"What was searched, as trial {escaped(provenance['trial'])} has it; all settings are in `config.json`; "
            f"its seed is {provenance['seed']}.",
            "",
            *_table(("setting", "value"), rows),
            "",
        ]
    )


def _evaluation(
    run: Mapping[str, Any], info: TableInfo, metrics: Mapping[str, Any], provenance: Mapping[str, Any], trials: int
) -> str:
    paper = metrics["paper"]
    baselines = [{**baseline, "name": escaped(baseline["name"])} for baseline in metrics["baselines"][:1]]
    header = ["metric", "valid", "test", *(f"{baseline_kind(baseline)}, test" for baseline in baselines)]
    header += ["paper, test"] if paper else []
    others = [*(baseline["test"] for baseline in baselines), *([paper] if paper else [])]
    rows = [
        (
            METRIC_TITLES.get(key, _words(key)),
            *(_figure(of.get(key)) for of in (metrics["valid"], metrics["test"], *others)),
        )
        for key in metrics["test"]
    ]
    reads = provenance["test_reads"]
    remarks = [f"Validation figures are optimistic: the best of {trials} trials."]
    if run.get("test_seen"):
        remarks.append("**Test was seen before selection ended**: the search went on after its figures had been read.")
    if reads:
        times = "once" if len(reads) == 1 else f"{len(reads)} times"
        remarks.append(
            f"The test split was read {times}, first at {escaped(reads[0]['time'])}, after the winner was fixed."
        )
    if "acc_whole" in metrics["test"]:
        remarks.append(acc_whole_note(info.label_range))
    remarks += baseline_remarks(baselines, metrics["test"], info.task)
    if paper:
        reasons = "; ".join(escaped(reason) for reason in metrics["not_comparable"])
        remarks.append(f"Paper: not comparable: {reasons}." if reasons else "Paper: one seed.")
    if {"acc2_non0", "acc2_mmsa"} <= paper.keys():
        remarks.append(datasets.TWO_READINGS)
    return "\n".join(["## Evaluation", "", *_table(header, rows), "", *(f"- {remark}" for remark in remarks), ""])


def _seeds(seeds: Mapping[str, Any]) -> str:
    """The retrainings: mean and deviation of both arms on test, and the gain between them."""
    winner, start, gain = seeds["arms"]["winner"], seeds["arms"]["start"], seeds["gain"]
    few = few_retrainings(seeds)
    rows = [
        (
            METRIC_TITLES.get(key, _words(key)),
            _spread(figure),
            _spread(start["test"].get(key)),
            _interval(gain.get(key)),
        )
        for key, figure in winner["test"].items()
    ]
    return "\n".join(
        [
            f"### Under {seeds['seeds']} fresh seeds",
            "",
            "The settings of this model and those that the search started from, each trained anew under the same "
            "seeds; nothing was chosen among them. On test, mean and deviation (n - 1) over "
            f"{winner['trained']} and {start['trained']} trainings. Rather than the figures above, these are what the "
            "settings are worth.",
            "",
            *_table(("metric", "these settings", "starting point", "difference, 95 % interval"), rows),
            "",
            *([sentence(few), ""] if few else []),
        ]
    )


def _again(run: Mapping[str, Any], place: str, provenance: Mapping[str, Any]) -> str:
    commands = list(dict.fromkeys(_command(start["command"]) for start in run["starts"]))
    checks = [
        f"python -m grcf_ray.evaluate {shlex.quote(place)}",
        f"python -m grcf_ray.train --from {shlex.quote(place)} --trial {shlex.quote(provenance['trial'])}",
    ]
    rows = [(escaped(what), escaped(which)) for what, which in provenance["versions"].items()]
    return "\n".join(
        [
            "## Reproduce",
            "",
            "The search:",
            "",
            *_fenced(commands),
            "",
            "With the run at hand: its figures measured again, and the winner trained again.",
            "",
            *_fenced(checks),
            "",
            *_table(("", "version"), rows),
            "",
        ]
    )


def _citation(info: TableInfo) -> str:
    facts = datasets.find(info.name)
    data = f"\nThe data: {escaped(facts.citation)}.\n" if facts else ""
    return f"## Citation\n\n{_PAPER}\n{data}"


def _what(info: TableInfo, settings: Mapping[str, Any]) -> str:
    """The method. A stage without epochs was none."""
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
    """The columns that the model reads."""
    return (*(() if saved["backbone"] is None else ("text",)), *saved["modality_dims"])


def _encoder(settings: Mapping[str, Any]) -> str:
    """A hub's name; of a folder its own name alone, since where it lay is nobody's business."""
    backbone: str = settings["model.backbone"]
    return backbone if _is_hub_name(backbone) else Path(backbone).name


def _is_hub_name(backbone: str) -> bool:
    return bool(_HUB_NAME.fullmatch(backbone)) and not Path(backbone).exists()


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _from_here(place: StoragePath) -> str:
    """A place as one types it where the search ran: a path from there, or a URI without keys."""
    return _one_line(without_keys(place.uri) if place.local is None else os.path.relpath(place.local))


def _command(command: str) -> str:
    """A command on record, quoted for the shell, its absolute paths from here and its URIs without keys."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return shlex.join(_word(_one_line(word)) for word in words)


def _word(word: str) -> str:
    """A word of a command; the value of PATH=VALUE may be a path too."""
    name, equals, value = word.partition("=")
    if equals and name and "/" not in name:
        return f"{name}={_word(value)}"
    path = word.removeprefix("file://")
    return os.path.relpath(path) if path.startswith("/") else without_keys(word)


def _setting(path: str) -> str:
    """A setting in words: `stage1.head_lr` is the head learning rate of Stage 1."""
    section, _, name = path.rpartition(".")
    stage = {"stage1": " of Stage 1", "stage2": " of Stage 2"}.get(section, "")
    return _words(name) + stage


def _words(name: str) -> str:
    return escaped(" ".join(_SPELT.get(word, word) for word in name.split("_")))


def _fenced(lines: Sequence[str], language: str = "sh") -> list[str]:
    """A block of code that no backticks within it can end."""
    runs = [len(run) for line in lines for run in re.findall("`+", line)]
    fence = "`" * max(3, 1 + max(runs, default=0))
    return [f"{fence}{language}", *lines, fence]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in rows)]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _figure_of(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _spread(figure: Mapping[str, float | None] | None) -> str:
    if figure is None:
        return "-"
    deviation = figure["deviation"]
    return _figure(figure["mean"]) + ("" if deviation is None else f" ± {deviation:.4f}")


def _interval(figure: Mapping[str, float | None] | None) -> str:
    if figure is None or figure["mean"] is None or figure["half_width"] is None:
        return "-"
    low, high = figure["mean"] - figure["half_width"], figure["mean"] + figure["half_width"]
    return f"{figure['mean']:+.4f} [{low:+.4f}, {high:+.4f}]"
