"""Build and check the configuration of a run, by dotted paths such as `stage1.encoder_lr`.

Search-space files, `--set` and the run record all use the same flat mapping from path to value. The settings themselves
are defined in `grcf_ray.settings`; import them from here.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from grcf_ray.errors import ConfigError, faults_message
from grcf_ray.plain_yaml import read_yaml
from grcf_ray.plugins import model_module, model_names

# Each alias marks a name that other modules import from here. isort would give each a statement.
# isort: off
from grcf_ray.settings import (
    DROPOUTS as DROPOUTS,
    ClassesConfig as ClassesConfig,
    FeatureConfig as FeatureConfig,
    MetricsConfig as MetricsConfig,
    Modalities as Modalities,
    ModelConfig as ModelConfig,
    NoOptions as NoOptions,
    PairConfig as PairConfig,
    RankingConfig as RankingConfig,
    RunConfig as RunConfig,
    SearchConfig as SearchConfig,
    Stage1Config as Stage1Config,
    Stage2Config as Stage2Config,
    Task as Task,
    TrainConfig as TrainConfig,
)

NEEDS_TEXT = (
    "model.modalities = {}: classification needs the text, which attends to the other modalities; "
    "use all, text, text+audio or text+vision"
)

EARLIER: Mapping[str, Any] = {
    "features.special_rows": "zero",
    "search.ensemble": 1,
    "search.gpus_per_worker": 0.0,
    "train.device_features_gb": 0.0,
}
"""Value that older runs and models used before a setting existed, if its default is different now."""


def recorded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a recorded run or model, by path.

    A setting that is newer than the record gets the value that was in effect when the record was written.
    """
    return {**flatten(RunConfig()), **EARLIER, **settings}


ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "no-advantage": {"ranking.advantage_weighting": False},
    "static-margin": {"ranking.dynamic_margin": False},
    "no-stage1": {"stage1.epochs": 0},
    "no-stage2": {"stage2.epochs": 0},
    "direct-mae": {
        "stage1.epochs": 0,
        "stage2.mae_weight": 1.0,
        "stage2.group_weight": 0.0,
        "stage2.boundary_weight": 0.0,
    },
}
"""Settings of each ablation in Table 3, and of the direct-MAE baseline."""

_REGRESSION = (
    *("ranking.groups", "ranking.group_edges", "ranking.intra_margin", "ranking.base_margin", "ranking.margin_step"),
    *("ranking.dynamic_margin", "model.output_scale", "model.textless_width"),
    *("stage1.group_weight", "stage1.reg_weight", "stage1.reg_margin"),
    *("stage2.mae_weight", "stage2.group_weight", "stage2.boundary_weight"),
)
_CLASSIFICATION = (
    *("classes.separation_margin", "classes.boundary_margin", "classes.advantage_clip", "stage1.separation_weight"),
    *("stage1.compactness_weight", "stage1.centering_weight", "model.attention_heads", "model.gate"),
    "model.non_text",
)


def encoder_name(settings: Mapping[str, Any]) -> str:
    """Return the short name of a run's text encoder, or `none`."""
    model = ModelConfig(backbone=settings["model.backbone"], modalities=settings.get("model.modalities", "all"))
    return short_name(model.encoder)


def short_name(backbone: str) -> str:
    """Return the last part of a Hugging Face name or path."""
    return backbone.rstrip("/").rpartition("/")[2]


def reads(task: Task, path: str) -> bool:
    """Return whether a setting has an effect on a task."""
    return path not in (_REGRESSION if task == "classification" else _CLASSIFICATION)


def check_read(task: Task, paths: Iterable[str]) -> None:
    """Raise ConfigError if a requested setting has no effect on the task."""
    if unread := [path for path in paths if not reads(task, path)]:
        raise ConfigError(f"{', '.join(unread)}: no effect on a {task} data set; remove it")


@cache
def _adapter(section: type = RunConfig) -> TypeAdapter[Any]:
    return TypeAdapter(section)


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Return a configuration as path -> value, in the order of its fields; a model's options come after all others."""
    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if isinstance(config, ModelConfig) and field.name == "options":
            options = flatten(value, f"{config.name}.")
        elif dataclasses.is_dataclass(value):
            values.update(flatten(value, f"{prefix}{field.name}."))
        else:
            values[prefix + field.name] = value
    return values | options


def model_options(name: str) -> dict[str, Any]:
    """Return the options of a model by path, such as `lmf.rank`, with their defaults."""
    return flatten(model_module(name).CARD.options(), f"{name}.")


def field_docstrings(section: type) -> dict[str, str]:
    """Return the string after each field of a dataclass, on one line, by field."""
    (definition,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(after.value.value.split())
        for field, after in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }


@cache
def known_paths() -> tuple[str, ...]:
    """Return the paths of all settings."""
    return tuple(flatten(RunConfig()))


def nearest(word: str, choices: Sequence[str]) -> str:
    """Return `; did you mean X?` for the choice closest to a word, or an empty string if none is close."""
    matches = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *sections, name = path.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return nested


def path_fault(path: str) -> str | None:
    """Return what is wrong with the path of a setting, or None if there is one by this path."""
    name, dot, option = path.partition(".")
    if dot and name in model_names():
        options = [known.partition(".")[2] for known in model_options(name)]
        offered = f"its options are {', '.join(options)}" if options else "it has none"
        return None if option in options else f"no such option of the model {name}; {offered}"
    return None if path in known_paths() else f"no such setting{nearest(path, known_paths())}"


def config_faults(values: Mapping[str, Any]) -> list[str]:
    """Return one line for each unknown path and each value that its setting does not accept.

    Options are those of `model.name`, if that is among the values, else of any model.
    """
    wrong = {path: fault for path in values if (fault := path_fault(path)) is not None}
    faults = [f"{path}: {fault}" for path, fault in wrong.items()]
    known = {path: value for path, value in values.items() if path not in wrong}
    sections, options = _split(known)
    faults += _value_faults(RunConfig, sections)
    for name, own in options.items():
        faults += _value_faults(model_module(name).CARD.options, own, f"{name}.")
        chosen = values.get("model.name", name)
        if chosen != name and chosen in model_names():
            offered = ", ".join(model_options(chosen)) or "none"
            faults += [f"{name}.{option}: the model is {chosen}, whose options are: {offered}" for option in own]
    return faults


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the settings that all models share, by path, and the options of each model, by model and name."""
    shared: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, dot, option = path.partition(".")
        if dot and name in model_names():
            options.setdefault(name, {})[option] = value
        else:
            shared[path] = value
    return shared, options


def _value_faults(section: type, values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line for each value that its setting does not accept. values: by path within the section."""
    try:
        _adapter(section).validate_python(_nest(values))
    except ValidationError as error:
        seen: dict[str, list[str]] = {}
        for fault in error.errors():
            path = next(p for p in values if p == ".".join(map(str, fault["loc"]))[: len(p)])
            seen.setdefault(path, []).append(fault["msg"].removeprefix("Input should be "))
        return [f"{prefix}{path} = {values[path]!r}: should be {' or '.join(why)}" for path, why in seen.items()]
    return []


def build_config(values: Mapping[str, Any], *, source: str = "the settings") -> RunConfig:
    """Return the default configuration with these paths set. A ConfigError lists all faults together."""
    values = {"model.name": ModelConfig.name, **values}
    if faults := config_faults(values):
        raise ConfigError(faults_message(f"{source}: {len(faults)} fault(s)", faults))
    sections, options = _split(values)
    config: RunConfig = _adapter().validate_python(_nest(sections))
    name = config.model.name
    if name == ModelConfig.name:
        return config
    own = _adapter(model_module(name).CARD.options).validate_python(options.get(name, {}))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, options=own))


def typed_value(path: str, value: Any) -> Any:
    """Return an accepted value in the type of its setting."""
    name, _, _ = path.partition(".")
    model = {"model.name": name} if name in model_names() else {}
    return flatten(build_config({**model, path: value}))[path]


def check_margins(config: RunConfig, half_range: float, task: Task = "regression") -> list[str]:
    """Return one line for each contradiction between the margins; classification has none.

    half_range: S, half the label range, in label units.
    """
    if task == "classification":
        return []
    ranking = config.ranking
    faults = []
    if ranking.dynamic_margin and ranking.base_margin < ranking.intra_margin:
        faults.append(
            f"ranking.base_margin = {ranking.base_margin:g} is below ranking.intra_margin = "
            f"{ranking.intra_margin:g}: pairs of different groups would need less distance than pairs of one group"
        )
    farthest = int(ranking.groups.rpartition(",")[2]) - 1
    widest = ranking.base_margin + (farthest * ranking.margin_step if ranking.dynamic_margin else 0)
    reach = 2 * config.model.output_scale * half_range / 3
    if widest > reach:
        faults.append(
            f"ranking.base_margin + {farthest} ranking.margin_step = {widest:g} exceeds {reach:g}, the largest "
            "difference between two scores"
        )
    if ranking.group_edges == "native" and half_range > 3:
        faults.append(
            f"ranking.group_edges = native covers [-3, 3], but labels reach {half_range:g} either side; use scaled"
        )
    return faults


def check_gpus(gpus: float) -> None:
    """Raise ConfigError if a worker asks for more than a process can use."""
    if gpus > 1:
        raise ConfigError(
            f"--gpus-per-worker {gpus:g}: a process drives one GPU; use at most 1, and train a trial on more GPUs with "
            f"more processes: --workers {math.ceil(gpus)}"
        )


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the `--set PATH=VALUE` arguments as path -> value. Values are YAML scalars; the last one wins."""
    values = {}
    faults = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            faults.append(f"{assignment!r}: should be PATH=VALUE, as in stage1.encoder_lr=1e-5")
            continue
        try:
            values[path.strip()] = read_yaml(text, "").content
        except ConfigError:
            faults.append(f"{assignment!r}: the value is not a YAML scalar")
    faults += config_faults(values)
    if faults:
        raise ConfigError(faults_message(f"--set: {len(faults)} fault(s)", faults))
    return values


def to_yaml(config: RunConfig) -> str:
    """Return the whole configuration as YAML, one mapping per section."""
    return yaml.safe_dump(_nest(flatten(config)), sort_keys=False)
