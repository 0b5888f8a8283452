"""Read and write search spaces: YAML files with the fixed settings, the searched settings and the starting point.

    dataset: mosi
    fixed:
      stage1.epochs: 17
    stage1:
      stage1.encoder_lr: {low: 4.0e-7, high: 1.0e-4, log: true, start: 8.0e-6}
      model.modalities: {choices: [text, text+audio], start: text}
    stage2:
      stage2.head_lr: {low: 4.0e-6, high: 1.0e-3, log: true, start: 1.0e-4}

Keys are configuration paths. The `start` values are the first trial of their stage.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from grcf_ray.config import (
    EARLIER,
    ModelConfig,
    RunConfig,
    Task,
    build_config,
    config_faults,
    flatten,
    known_paths,
    nearest,
    path_fault,
    typed_value,
)
from grcf_ray.data import datasets
from grcf_ray.errors import ConfigError, faults_message
from grcf_ray.plain_yaml import LARGEST, PlainYaml, read_yaml
from grcf_ray.search.schema import RunInfo

STAGE2_ONLY = ("stage2.",)
STAGE1_SECTIONS = ("stage1.", "ranking.", "classes.", "model.", "pairs.")
_NETWORK = ("model.", "pairs.")
"""Sections that a search of Stage 2 alone can search."""
FIXED_ONLY = {
    "model.name": "each model has its own options to search",
    "model.backbone": "a run's features are built for one backbone",
    "model.frozen_layers": "frozen layers are computed once for all trials",
    "model.text_vector": "frozen text vectors are computed once for all trials",
    "stage1.epochs": "the cosine schedule and ASHA need trials of equal length",
    "stage2.epochs": "the cosine schedule and ASHA need trials of equal length",
}

NO_STAGE = "stage1.epochs and stage2.epochs are both 0; raise one of them: --set stage2.epochs=N"
"""The error for a search without a stage."""
IN_LABEL_UNITS = {
    "ranking.intra_margin": 1,
    "ranking.base_margin": 1,
    "ranking.margin_step": 1,
    "stage1.reg_margin": 2,
}
"""Settings in label units, with the power of the label range by which they scale."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, inclusive; `log` searches their logarithm."""

    low: float
    high: float
    log: bool
    start: float

    def place_of(self, value: float) -> float:
        """Return the place of a value in the range, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def value_at(self, place: float) -> float:
        """Return the value at a place of the range, to six digits."""
        if self.log:
            return _rounded(self.low * (self.high / self.low) ** place)
        return _rounded(self.low + (self.high - self.low) * place)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A choice among a few values."""

    choices: tuple[str | int | float | bool, ...]
    start: str | int | float | bool

    def place_of(self, value: str | int | float | bool) -> float:
        """Return the place of a choice in the list, from 0 to 1."""
        return self.choices.index(value) / max(1, len(self.choices) - 1)

    def value_at(self, place: float) -> str | int | float | bool:
        """Return the choice at a place from 0 to 1; all have an equal share."""
        return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]


Dimension = Range | Choice


@dataclasses.dataclass(frozen=True)
class Space:
    """The searched settings of both stages, and the fixed ones that differ from the defaults."""

    dataset: str
    """The data set that the space was written for or scaled to."""
    fixed: Mapping[str, Any]
    stage1: Mapping[str, Dimension]
    stage2: Mapping[str, Dimension]
    source: str
    """The file of the space, for messages."""

    def with_settings(self, settings: Mapping[str, Any]) -> Space:
        """Return the space with these settings fixed, whether the space searched them or not (`--set`)."""
        return dataclasses.replace(
            self,
            fixed={**self.fixed, **settings},
            stage1={path: dim for path, dim in self.stage1.items() if path not in settings},
            stage2={path: dim for path, dim in self.stage2.items() if path not in settings},
        )

    def for_labels(self, dataset: str, half_range: float, task: Task = "regression") -> Space:
        """Return the space for a data set whose labels reach `half_range` on either side of their centre.

        If the space was written for a known data set with another label range, scale its margins and their searched
        ranges. Margins are in label units, the regularisation margin in their square.
        """
        facts = datasets.find(self.dataset)
        if facts is None or facts.name == dataset or {facts.task, task} != {"regression"}:
            return self
        low, high = facts.label_range
        ratio = 2 * half_range / (high - low)
        if ratio == 1:
            return self
        values, fixed = flatten(self.config()), dict(self.fixed)
        stages = {1: dict(self.stage1), 2: dict(self.stage2)}
        for path, power in IN_LABEL_UNITS.items():
            factor = ratio**power
            held = [stage for stage in stages.values() if path in stage]
            for stage in held:
                stage[path] = _scaled(stage[path], factor)
            if not held:
                fixed[path] = _rounded(values[path] * factor)
        return dataclasses.replace(self, dataset=dataset, fixed=fixed, stage1=stages[1], stage2=stages[2])

    def dimensions(self, stage: Literal[1, 2]) -> Mapping[str, Dimension]:
        """Return the settings that the stage searches."""
        return self.stage1 if stage == 1 else self.stage2

    def start(self, stage: Literal[1, 2]) -> dict[str, Any]:
        """Return the parameters of the stage's first trial."""
        return {path: dimension.start for path, dimension in self.dimensions(stage).items()}

    def config(self, params: Mapping[str, Any] | None = None) -> RunConfig:
        """Return the configuration of a trial with these parameters; by default, of the starting point."""
        start = {**self.start(1), **self.start(2)}
        return build_config({**self.fixed, **start, **(params or {})}, source=self.source)

    def as_dict(self) -> dict[str, Any]:
        """Return the space as the content of a file for `load_space`."""

        def plain(dimension: Dimension) -> dict[str, Any]:
            values = dataclasses.asdict(dimension)
            return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

        return {
            "dataset": self.dataset,
            "fixed": dict(self.fixed),
            "stage1": {path: plain(dimension) for path, dimension in self.stage1.items()},
            "stage2": {path: plain(dimension) for path, dimension in self.stage2.items()},
        }


def stage_epochs(config: RunConfig) -> dict[Literal[1, 2], int]:
    """Return the epochs of each stage that has any."""
    stages: list[tuple[Literal[1, 2], int]] = [(1, config.stage1.epochs), (2, config.stage2.epochs)]
    return {stage: epochs for stage, epochs in stages if epochs}


def stage_budgets(config: RunConfig) -> dict[Literal[1, 2], tuple[int, int]]:
    """Return the number of trials and of epochs of each stage that has epochs."""
    trials = {1: config.search.stage1_trials, 2: config.search.stage2_trials}
    return {stage: (trials[stage], epochs) for stage, epochs in stage_epochs(config).items()}


def recorded_space(content: Mapping[str, Any], source: str) -> Space:
    """Return the space of a run record, the inverse of `Space.as_dict`."""

    def dimension(value: Mapping[str, Any]) -> Dimension:
        if "choices" in value:
            return Choice(tuple(value["choices"]), value["start"])
        return Range(**value)

    first, second = (
        {path: dimension(value) for path, value in content[stage].items()} for stage in ("stage1", "stage2")
    )
    return Space(content["dataset"], content["fixed"], first, second, source)


def run_space(info: RunInfo, source: str) -> Space:
    """Return the space of a run's trials; settings that its release did not have keep their earlier behaviour."""
    space = recorded_space(info.space.model_dump(), source)
    return space.with_settings({path: info.settings[path] for path in (*EARLIER, "train.precision")})


def load_space(path: Path) -> Space:
    """Read a space file. Raises ConfigError with all faults of the file."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1).decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such search space; shipped spaces: {', '.join(shipped_spaces())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    return _parse(read_yaml(text, str(path)), str(path))


def space_for(dataset: str, path: str | Path | None) -> Space:
    """Return the space of a file, else the shipped space of the data set. Raises ConfigError if there is neither."""
    if path is not None:
        return load_space(Path(path))
    return load_space(shipped_spaces()[datasets.get(dataset).name])


def shipped_spaces() -> dict[str, Path]:
    """Return the files of the shipped spaces by name: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "search_spaces"
    folder = installed if installed.is_dir() else package.parent / "search_spaces"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def _parse(read: PlainYaml, source: str) -> Space:
    content = read.content

    def at(*keys: str) -> str:
        return f" (line {read.lines[keys]})" if keys in read.lines else ""

    if not isinstance(content, dict):
        raise ConfigError(f"{source}: should be a mapping with dataset, fixed, stage1 and stage2")
    sections = ("dataset", "fixed", "stage1", "stage2")
    faults = [f"{key}: no such section{nearest(key, sections)}{at(key)}" for key in content if key not in sections]
    parts: dict[str, dict[str, Any]] = {}
    for name in sections[1:]:
        part = content.get(name) or {}
        if not isinstance(part, dict):
            faults.append(f"{name}: should be a mapping of settings{at(name)}")
            part = {}
        parts[name] = part
    if not isinstance(content.get("dataset"), str):
        faults.append("dataset: missing, the name of the data set that the space is for")
    for fault in config_faults(parts["fixed"]):
        path = next(path for path in parts["fixed"] if fault.startswith((f"{path} = ", f"{path}:")))
        faults.append(f"fixed: {fault}{at('fixed', path)}")
    dimensions: dict[str, dict[str, Dimension]] = {"stage1": {}, "stage2": {}}
    model = parts["fixed"].get("model.name", ModelConfig.name)
    options = () if model == ModelConfig.name else (f"{model}.",)
    for stage in ("stage1", "stage2"):
        allowed = STAGE1_SECTIONS if stage == "stage1" else STAGE2_ONLY
        if stage == "stage1":
            allowed = (*allowed, *options)
        # Otherwise Stage 2 inherits the network of its Stage 1 trial.
        elif parts["fixed"].get("stage1.epochs") == 0:
            allowed = (*allowed, *_NETWORK, *options)
        for path, value in parts[stage].items():
            path_faults = _path_faults(path, stage, allowed, parts)
            if not path_faults:
                dimension, path_faults = _dimension(path, value)
                if dimension is not None and not path_faults:
                    dimensions[stage][path] = dimension
            faults += [f"{stage}: {path}: {fault}{at(stage, path)}" for fault in path_faults]
    if faults:
        raise ConfigError(faults_message(f"{source}: {len(faults)} fault(s)", faults, limit=len(faults)))
    return Space(content["dataset"], parts["fixed"], dimensions["stage1"], dimensions["stage2"], source)


def _scaled(dimension: Dimension, factor: float) -> Dimension:
    if isinstance(dimension, Choice):
        choices = [_rounded(float(choice) * factor) for choice in dimension.choices]
        return Choice(tuple(choices), _rounded(float(dimension.start) * factor))
    low, high, start = (_rounded(value * factor) for value in (dimension.low, dimension.high, dimension.start))
    return Range(low, high, dimension.log, start)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _path_faults(path: str, stage: str, allowed: Sequence[str], parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if (fault := path_fault(path)) is not None:
        return [fault]
    if path in FIXED_ONLY:
        return [f"can only be fixed: {FIXED_ONLY[path]}"]
    if not path.startswith(tuple(allowed)):
        where = " and ".join(f"{section}*" for section in allowed)
        stage2_path = f"stage2.{path.partition('.')[2]}"
        hint = f"; in Stage 2 search {stage2_path}" if stage == "stage2" and stage2_path in known_paths() else ""
        return [f"cannot be searched in {stage}, which searches {where}{hint}"]
    if path in parts["fixed"]:
        return ["is also fixed; fix the setting or search it, not both"]
    return []


def dimension_of(path: str, value: Mapping[str, Any]) -> Dimension:
    """Return the dimension of an entry of a search space. ConfigError with all of its faults."""
    dimension, faults = _dimension(path, value)
    if faults or dimension is None:
        raise ConfigError(faults_message(f"{path}: {len(faults)} fault(s)", faults))
    return dimension


def _dimension(path: str, value: Any) -> tuple[Dimension | None, list[str]]:
    if not isinstance(value, dict):
        return None, ["should be {low, high, log, start} or {choices, start}"]
    return _choice(path, value) if "choices" in value else _range(path, value)


def _choice(path: str, value: Mapping[str, Any]) -> tuple[Dimension | None, list[str]]:
    faults = [f"{key}: unknown; a choice has choices and start" for key in value.keys() - {"choices", "start"}]
    choices = value["choices"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, (str, int, float)) for c in choices):
        return None, [*faults, "choices: should be a list of two or more words or numbers"]
    if unfit := _unfit(path, choices):
        return None, [*faults, *unfit]
    # Convert to the setting's type, so that yes is true, and 1 equals 1.0.
    choices = [typed_value(path, choice) for choice in choices]
    faults += [f"choices: {choice!r} is listed twice" for choice in dict.fromkeys(choices) if choices.count(choice) > 1]
    start: Any = value.get("start")
    if not _unfit(path, [start]):
        start = typed_value(path, start)
    if start not in choices:
        faults.append(f"start = {start!r}: should be one of the choices {choices}")
        return None, faults
    return Choice(tuple(choices), start), faults


def _range(path: str, value: Mapping[str, Any]) -> tuple[Dimension | None, list[str]]:
    faults = [
        f"{key}: unknown; a range has low, high, log and start"
        for key in sorted(value.keys() - {"low", "high", "log", "start"})
    ]
    numbers: dict[str, float] = {}
    for key in ("low", "high", "start"):
        number = value.get(key)
        if key not in value:
            faults.append(f"{key}: missing")
        elif isinstance(number, bool) or not isinstance(number, (int, float)):
            faults.append(f"{key} = {number!r}: should be a number in decimal digits")
        elif not math.isfinite(number):
            faults.append(f"{key} = {number}: should be a finite number")
        else:
            numbers[key] = float(number)
    log = value.get("log", False)
    if not isinstance(log, bool):
        faults.append(f"log = {log!r}: should be true or false")
    if len(numbers) < 3:
        return None, faults
    low, high, start = numbers["low"], numbers["high"], numbers["start"]
    if low >= high:
        faults.append(f"bounds are crossed: low = {low:g} is not below high = {high:g}")
    elif not low <= start <= high:
        faults.append(f"start = {start:g}: lies outside [{low:g}, {high:g}]")
    if log is True and low <= 0:
        faults.append(f"low = {low:g}: should be positive if log is true")
    # A setting accepts a range if it accepts both ends.
    return Range(low, high, bool(log), start), faults or _unfit(path, (low, high, start))


def _unfit(path: str, values: Sequence[Any]) -> list[str]:
    return [fault.removeprefix(f"{path} = ") for value in values for fault in config_faults({path: value})]
