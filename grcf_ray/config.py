"""Build and check the configuration of a run, by dotted paths such as `stage1.encoder_lr`.

Search-space files, `--set` and the run record all use the same flat mapping from path to value. The settings themselves
are defined in `grcf_ray.settings`; import them from here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from grcf_ray.errors import ConfigError, faults_message
from grcf_ray.plain_yaml import read_yaml

# Each alias marks a name that other modules import from here. isort would give each a statement.
# isort: off
from grcf_ray.settings import (
    DROPOUTS as DROPOUTS,
    ClassesConfig as ClassesConfig,
    FeatureConfig as FeatureConfig,
    MetricsConfig as MetricsConfig,
    Modalities as Modalities,
    ModelConfig as ModelConfig,
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
    if not ModelConfig(modalities=settings.get("model.modalities", "all")).sees_text:
        return "none"
    return short_name(settings["model.backbone"])


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
def _adapter() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Return a configuration as path -> value, in the order of its fields."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            values.update(flatten(value, f"{prefix}{field.name}."))
        else:
            values[prefix + field.name] = value
    return values


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


def config_faults(values: Mapping[str, Any]) -> list[str]:
    """Return one line for each unknown path and each value that its setting does not accept."""
    faults = [f"{path}: no such setting{nearest(path, known_paths())}" for path in values if path not in known_paths()]
    known = {path: value for path, value in values.items() if path in known_paths()}
    try:
        _adapter().validate_python(_nest(known))
    except ValidationError as error:
        seen: dict[str, list[str]] = {}
        for fault in error.errors():
            path = next(p for p in known if p == ".".join(map(str, fault["loc"]))[: len(p)])
            seen.setdefault(path, []).append(fault["msg"].removeprefix("Input should be "))
        faults += [f"{path} = {known[path]!r}: should be {' or '.join(why)}" for path, why in seen.items()]
    return faults


def build_config(values: Mapping[str, Any], *, source: str = "the settings") -> RunConfig:
    """Return the default configuration with these paths set. A ConfigError lists all faults together."""
    if faults := config_faults(values):
        raise ConfigError(faults_message(f"{source}: {len(faults)} fault(s)", faults))
    return _adapter().validate_python(_nest(values))


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
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
