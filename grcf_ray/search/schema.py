"""Define the JSON files of a run, check each file when it is read, and upgrade files of earlier versions.

A missing key, an unknown key or a value of the wrong type raises a DataError that names it. Unknown keys in files of
earlier versions are ignored. `lease.json` is not defined here: another process writes it, and `lease` reads it.
"""

from __future__ import annotations

import copy
import datetime
import functools
import operator
import re
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from grcf_ray.config import Task, config_faults, recorded_settings
from grcf_ray.data.datasets import protocol_of
from grcf_ray.errors import DamagedError, DataError
from grcf_ray.metrics import MetricProtocol
from grcf_ray.storage import StoragePath

SCHEMA_VERSION = 2
"""Version of every file of a run. Release 0.1 wrote version 1, some files without a version."""
_MOST_EPOCHS = 100_000
_FAULTS = 5
"""Number of a file's faults that an error lists."""

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Name = Annotated[str, Field(pattern=r"^stage[12]/\d{1,9}$")]
_Digits = Annotated[str, Field(pattern=r"^\d{1,9}$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Checkpoint = Annotated[str, Field(pattern=r"^(stage[12]/trials/\d+/attempt-\d+|finalists/\d+)/[\w-]+\.safetensors$")]
_Scalar = Union[str, bool, int, _Finite, None]  # noqa: UP007
_Figures = dict[str, _Finite]


def _moment(text: str) -> str:
    if text:
        datetime.datetime.fromisoformat(text)
    return text


_Time = Annotated[str, AfterValidator(_moment)]
"""A time in ISO format; empty if it was not recorded."""


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    if faults := config_faults(values):
        raise ValueError("; ".join(faults[:_FAULTS]))
    return values


_Settings = Annotated[dict[str, Any], AfterValidator(_settings)]


def _epochs(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for number, metrics in enumerate(curve, 1):
        if metrics.get("epoch") != number:
            raise ValueError(f"entry {number} has epoch {metrics.get('epoch')} instead of {number}")
    return curve


_Curve = Annotated[list[dict[str, _Finite | None]], Field(max_length=_MOST_EPOCHS), AfterValidator(_epochs)]


class _Part(BaseModel):
    """A mapping with exactly these keys, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StoredFile(_Part):
    """A JSON file of a run."""

    versioned_from: ClassVar[int] = 2
    """The first version whose files of this kind have a version number."""

    schema_version: Annotated[int, Field(ge=1)]

    @staticmethod
    def upgraded(content: dict[str, Any]) -> dict[str, Any]:
        """Return the content of version 1 in version 2."""
        return content


_Stored = TypeVar("_Stored", bound=StoredFile)


class _Start(_Part):
    time: _Time
    command: str
    seeds: _Count = 0
    stage_ends: dict[_Digits, _Time] = {}


class _Range(_Part):
    low: _Finite
    high: _Finite
    log: bool
    start: _Finite

    @model_validator(mode="after")
    def _bounds(self) -> _Range:
        if not self.low <= self.start <= self.high or (self.log and self.low <= 0):
            raise ValueError("should have low <= start <= high, and low > 0 if log is true")
        return self


class _Choice(_Part):
    choices: Annotated[list[_Scalar], Field(min_length=1)]
    start: _Scalar


def _dimension(value: Any) -> Any:
    _CHOICE.validate_python(value) if isinstance(value, dict) and "choices" in value else _RANGE.validate_python(value)
    return value


_CHOICE, _RANGE = TypeAdapter(_Choice), TypeAdapter(_Range)
_Dimensions = dict[str, Annotated[Any, AfterValidator(_dimension)]]


class _Space(_Part):
    dataset: str
    fixed: _Settings
    stage1: _Dimensions
    stage2: _Dimensions


class _MadeSpace(_Part):
    """A space made for the data, before the user's own settings."""

    space: _Space
    seconds: _NonNegative
    summary: str


class RunData(_Part):
    """The data of a search, with the folder it read them from."""

    folder: str
    name: str
    task: Task
    fingerprint: str
    label_range: Annotated[list[_Finite], Field(min_length=2, max_length=2)]
    metrics: MetricProtocol | None = None
    columns: dict[str, str] = {}

    @property
    def protocol(self) -> MetricProtocol:
        """The metric protocol of the run's figures."""
        # The first releases recorded no protocol and measured all other data as MOSI.
        protocol = protocol_of(self.name, self.task)
        return self.metrics or ("mosi" if protocol == "own" else protocol)


class _Encoder(_Part):
    name: str
    weights_sha256: str


class PartInfo(StoredFile):
    """run.json of a record that is a part of a run, such as retrainings."""

    versioned_from = 1

    state: str
    settings: _Settings = {}
    winner: _Name | None = None
    finalists: list[_Digits] = []
    stage2_trials: _Count = 0
    encoder: _Encoder | None = None
    cut: list[Literal[1, 2]] = []
    """Stages that the time budget ended."""
    left: list[_Name] = []
    """Trials that were left unfinished, after failures for causes outside of them."""
    excluded: list[str] = []
    """Hosts of nodes that got no more trials after failures there."""


def _resolved_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return every setting. Runs of earlier releases recorded the precision `auto`: bfloat16 on GPUs alone."""
    known = recorded_settings(settings)
    if known["train.precision"] == "auto":
        on_gpu = known["search.gpus_per_worker"] and known["train.device"] != "cpu"
        known["train.precision"] = "bfloat16" if on_gpu else "float32"
    return known


class RunInfo(PartInfo):
    """run.json of a search."""

    starts: Annotated[list[_Start], Field(min_length=1)]
    space: _Space
    made: _MadeSpace | None = None
    """The space that a search without a space file made; later starts use it."""
    settings: Annotated[_Settings, AfterValidator(_resolved_settings)]
    """Every setting by path; settings that the run's release did not have keep their earlier behaviour."""
    data: RunData
    versions: dict[str, str]
    seeds: _Count = 0
    test_seen: bool = False
    ended: _Time | None = None

    @staticmethod
    def upgraded(content: dict[str, Any]) -> dict[str, Any]:
        """Add the task: all data of version 1 were for regression."""
        data = content.get("data")
        return {**content, "data": {"task": "regression", **data}} if isinstance(data, dict) else content


class _Failure(_Part):
    attempt: _Count
    cause: str
    error: str
    time: str
    node: str | None = None
    host: str | None = None
    gpu: str | None = None


class TrialFile(StoredFile):
    """stageN/trials/NNNN.json."""

    versioned_from = 1

    number: _Count
    stage: Literal[1, 2]
    attempt: _Count
    params: dict[str, _Scalar]
    seed: _Count
    state: Literal["running", "complete", "pruned", "diverged", "failed"]
    curve: _Curve
    error: str | None
    cause: str | None
    failures: list[_Failure]
    notes: list[str]
    seconds: _NonNegative
    utterance_passes: _NonNegative
    checkpoint: _Checkpoint | None
    checkpoint_sha256: _Sha256 | None
    started: _Time
    ended: _Time | None

    @model_validator(mode="after")
    def _finalist(self) -> TrialFile:
        if not re.fullmatch(r"\d{1,9}", str(self.params.get("finalist", 0))):
            raise ValueError(f"params.finalist = {self.params['finalist']!r}: should be the number of a trial")
        return self


class FinalistFile(StoredFile):
    """finalists/NNNN/trial.json."""

    trial: _Count
    objective: _Finite | None
    params: dict[str, _Scalar]
    sha256: _Sha256


class ModelMetricsFile(StoredFile):
    """metrics.json of a retrained model or of a member of the ensemble."""

    valid: _Figures
    test: _Figures


class Baseline(_Part):
    """A regression on frozen features, which the search fits beside its models."""

    name: str
    alpha: _Finite
    valid: _Figures
    test: _Figures


class EnsembleMetrics(_Part):
    """Metrics of the mean score of several models."""

    valid: _Figures
    test: _Figures


class BestTrials(EnsembleMetrics):
    """The ensemble of a search: the best trials of its last stage, the winner first."""

    members: Annotated[list[_Name], Field(min_length=2)]


class MetricsFile(ModelMetricsFile):
    """best/metrics.json."""

    trial: _Name
    ensemble: BestTrials | None = None
    """Older releases measured none; nor does a search with one usable trial."""
    threads: Annotated[int, Field(ge=1, le=4096)]
    paper: _Figures
    not_comparable: list[str]
    baselines: list[Baseline]


class _TestRead(_Part):
    time: str
    command: str
    models: list[str]
    argv: list[str] = []


class _Source(_Part):
    name: str
    sha256: str


class _Origin(_Part):
    name: str
    fingerprint: str
    sources: list[_Source]


class ProvenanceFile(StoredFile):
    """provenance.json of the best model or of a retrained one."""

    trial: _Name
    params: dict[str, _Scalar]
    seed: _Count
    settings: _Settings
    data: _Origin
    versions: dict[str, str]
    test_reads: list[_TestRead]


class _Retrained(_Part):
    arm: Literal["winner", "start"]
    index: _Count
    seed: _Count
    valid: _Figures
    test: _Figures


class Estimate(_Part):
    """A metric's mean over seeds; its deviation and the half width of its 95 % interval are None for one seed."""

    mean: _Finite
    deviation: _NonNegative | None
    half_width: _NonNegative | None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The ends of the 95 % interval."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


class _ArmSpread(_Part):
    trained: _Count
    valid: dict[str, Estimate]
    test: dict[str, Estimate]


class SeedsFile(StoredFile):
    """seeds/metrics.json."""

    winner: _Name
    seeds: _Count
    complete: bool
    models: list[_Retrained]
    ensembles: dict[Literal["winner", "start"], EnsembleMetrics] = {}
    """Of all models of an arm, if it has several; older releases did not measure them."""
    arms: dict[Literal["winner", "start"], _ArmSpread]
    gain: dict[str, Estimate]


class EntryFile(_Part):
    """An entry of reproduce/models/SHAPE/entries.json."""

    stage1: dict[str, _Scalar]
    stage2: dict[str, _Scalar]
    index: _Count


def read_file(place: StoragePath, kind: type[StoredFile]) -> dict[str, Any]:
    """Read a file of a run in the current version. Raises FileNotFoundError, and DataError as `checked` does."""
    return checked(place.read_json(), kind, place)


def checked(content: Any, kind: type[StoredFile], place: StoragePath) -> dict[str, Any]:
    """Return the content of a file in the current version.

    Raises DataError if a newer release wrote the file, DamagedError with every fault if it does not fit the kind.
    """
    return parsed(content, kind, place)[0]


def parsed(content: Any, kind: type[_Stored], place: StoragePath) -> tuple[dict[str, Any], _Stored]:
    """Return the content of a file in the current version, as JSON and as a model. Raises as `checked` does."""
    if not isinstance(content, dict):
        raise _damaged(place, [f"should be a JSON object, not {type(content).__name__}"])
    version = content.get("schema_version", 1 if kind.versioned_from > 1 else None)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _damaged(place, [f"schema_version = {version!r}: should be an integer of at least 1"])
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{place}: a newer grcf_ray wrote it (version {version}; this one reads up to {SCHEMA_VERSION}). "
            "Upgrade grcf_ray"
        )
    old = version < SCHEMA_VERSION
    if old:
        content = kind.upgraded({**content, "schema_version": SCHEMA_VERSION})
    while True:
        try:
            model = kind.model_validate(content)
        except ValidationError as error:
            faults = error.errors()
            if not old or any(fault["type"] != "extra_forbidden" for fault in faults):
                raise _damaged(place, _lines(error)) from error
            content = copy.deepcopy(content)
            for fault in faults:
                *path, key = fault["loc"]
                del functools.reduce(operator.getitem, path, content)[key]
        else:
            return dict(content), model


def checked_list(place: StoragePath, kind: type[_Part]) -> list[dict[str, Any]]:
    """Read a file that is a list of objects of a kind. Raises FileNotFoundError or DamagedError."""
    try:
        content: list[dict[str, Any]] = place.read_json()
        TypeAdapter(list[kind]).validate_python(content)  # type: ignore[valid-type]
    except ValidationError as error:
        raise _damaged(place, _lines(error)) from error
    return content


def _lines(error: ValidationError) -> list[str]:
    kinds = {"missing": " is missing", "extra_forbidden": ": no such key"}
    return [
        (".".join(map(str, fault["loc"])) or "the file")
        + kinds.get(fault["type"], f": {fault['msg'].removeprefix('Value error, ')}")
        for fault in error.errors()
    ]


def _damaged(place: StoragePath, faults: list[str]) -> DamagedError:
    more = [f"and {len(faults) - _FAULTS} more faults"] if len(faults) > _FAULTS else []
    return DamagedError(
        f"{place}: damaged, edited or from another run ({'; '.join([*faults[:_FAULTS], *more])}). "
        "Restore the file from a copy, or move it away"
    )
