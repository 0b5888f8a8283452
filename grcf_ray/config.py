"""The configuration of a run: frozen dataclasses, addressed by dotted paths such as `stage1.encoder_lr`.

One grammar serves the search-space files, `--set` and the run record: a flat mapping from path to value. All values
are in label units where a unit applies; learning rates and weights have none.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from grcf_ray.errors import ConfigError, faults_message
from grcf_ray.plain_yaml import DECIMAL, read_yaml

Task = Literal["regression", "classification"]
Modalities = Literal["all", "text", "audio", "vision", "text+audio", "text+vision", "audio+vision"]


def _number(value: Any) -> Any:
    # Left to itself, pydantic takes true for 1, and 010 and 1_000 for numbers.
    if isinstance(value, bool) or (isinstance(value, str) and not DECIMAL.fullmatch(value.strip())):
        raise PydanticCustomError("decimal", "Input should be a number in decimal digits")
    return value


Digits = BeforeValidator(_number)
Positive = Annotated[float, Digits, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Digits, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Digits, Field(ge=0, lt=1)]
Count = Annotated[int, Digits, Field(ge=0)]
PositiveCount = Annotated[int, Digits, Field(ge=1)]
# Runs of the first releases have true and false on record for the words yes and no.
Word = BeforeValidator(lambda value: ("yes" if value else "no") if isinstance(value, bool) else value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """What is computed once from the utterance table and shared by all trials."""

    max_tokens: Annotated[int, Digits, Field(ge=4)] = 128
    """Subwords an utterance is cut to, special tokens counted; of its context the oldest go first."""
    standardise: bool = True
    """Give audio and vision columns zero mean and unit deviation, by the training split's rows."""
    context: bool = True
    """Put what was said before, where the data have it, in front of the text: [CLS] context [SEP] text [SEP]."""
    special_rows: Literal["none", "zero"] = "none"
    """What special tokens and context have where audio and vision follow words: no row, as eqs. 1-2 ask, or a row of
    zeros that attention pools with the others, as the MAG pipelines have it."""
    lowercase: Annotated[Literal["auto", "yes", "no"], Word] = "auto"
    """Lower-case the text; auto does so where the table says that its transcripts are upper case."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network of section 3.1."""

    backbone: str = "microsoft/deberta-v3-base"
    """Text encoder: a Hugging Face name or a local folder."""
    text_vector: Literal["cls", "mean", "last"] = "cls"
    """The text representation: the first subword's state, the masked mean of all, or the last subword's. The first is
    of no use in a backbone that reads from left to right (GPT-2), and is refused there."""
    modalities: Modalities = "all"
    """Modalities the model sees; all are the text and whatever else the data set has. Without text there is no text
    encoder, and no tokens: for regression alone."""
    textless_width: PositiveCount = 768
    """Width of the fused representation of a model without text; with text it is the text encoder's."""
    frozen_layers: Count | Literal["all"] = 0
    """Bottom layers of the text encoder, embeddings with them, that stay as pretrained and run once per run."""
    fusion_dropout: Probability = 0.4
    """Dropout after the fusion layer."""
    unified_dropout: Probability = 0.2
    """Dropout after the unified encoder."""
    modality_dropout: Probability = 0.0
    """Chance that a scored slot loses its audio, and independently its vision, while training."""
    output_scale: Positive = 3.5
    """Reach of the scaled tanh, eq. 5, for labels in [-3, 3]; grows with the label range."""
    attention_heads: PositiveCount = 4
    """Heads of the cross-attention; for classification."""
    non_text: Literal["rows", "pooled"] = "rows"
    """What the text attends to, eq. 14: every row of audio and vision, or one attention-pooled vector of each (eqs.
    1-2); for classification."""
    gate: Literal["scalar", "vector"] = "scalar"
    """One gate a sample, or one for each of its dimensions, eq. 15; for classification."""

    @property
    def sees_text(self) -> bool:
        """Whether the network has a text encoder."""
        return self.modalities == "all" or "text" in self.modalities

    def sees(self, modality: str) -> bool:
        """Whether the network has a branch for a modality, if the data have it."""
        return self.modalities == "all" or modality in self.modalities


NEEDS_TEXT = (
    "model.modalities = {}: classification needs the text, which attends to the other modalities; "
    "give all, text, text+audio or text+vision"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Pairs, groups of pairs, and steps (appendix C.2; Table 13's batch rows)."""

    pairs_per_epoch: PositiveCount | None = None
    """Pairs drawn an epoch; by default 39 for each training utterance (the paper: 50,000 for MOSI)."""
    pairs_per_group: PositiveCount = 96
    """Pairs in a group: each loss is computed per group."""
    groups_per_step: PositiveCount = 8
    """Groups in an optimizer step, over all ranks."""
    pairing: Literal["sampled", "all"] = "sampled"
    """Compare a group's sampled pairs, or every pair of its distinct utterances."""
    redraw: bool = True
    """Draw new pairs each epoch; otherwise the run keeps one set."""
    micro_batch_tokens: PositiveCount = 1024
    """Padded tokens that the text encoder takes at a time."""
    activation_tokens: PositiveCount | None = None
    """Padded tokens whose activations a step keeps for its gradient; where it has more, they are computed twice, for
    the same gradient. By default as many as two groups have whose texts all are of features.max_tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """The group-aware ranking loss, eqs. 6-9. Stage 2 inherits it from its Stage 1 trial."""

    groups: Literal["overlap,5", "overlap,3", "overlap,7", "strict,5"] = "overlap,5"
    """Ordinal groups of the dynamic margin (Table 4)."""
    group_edges: Literal["scaled", "native"] = "scaled"
    """Group edges scaled to the label range, or as MOSI's [-3, 3] has them."""
    intra_margin: Positive = 0.1
    """Margin of a pair that shares a group."""
    base_margin: Positive = 0.5
    """Margin of a pair of different groups, before the steps of its distance."""
    margin_step: NonNegative = 0.1
    """Margin added for each group of distance."""
    advantage_weighting: bool = True
    """Weigh pairs by ReLU(-advantage); otherwise every pair weighs 1."""
    dynamic_margin: bool = True
    """Let the margin follow the group distance; otherwise it is the base margin."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassesConfig:
    """Margins of the classification losses, eqs. 18-24, in logits."""

    separation_margin: Positive = 1.0
    """Margin between the logits of a positive and a negative."""
    boundary_margin: NonNegative = 0.5
    """Distance from 0 that each logit is asked to keep, on its class's side."""
    advantage_clip: Positive = 2.0
    """Bound of the advantage that weighs pairs of one class."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage1Config:
    """Stage 1, structural foundation, eq. 12; for classification eq. 17."""

    epochs: Count = 17
    """Epochs of Stage 1; 0 leaves the stage out."""
    head_lr: Positive = 1e-5
    """Learning rate of everything outside the text encoder."""
    encoder_lr: Positive = 8e-6
    """Learning rate of the text encoder."""
    weight_decay: NonNegative = 2e-2
    """AdamW's decay; biases and norms have none."""
    group_weight: NonNegative = 0.9
    """Weight of the ranking loss."""
    reg_weight: NonNegative = 5e-3
    """Weight of the distribution regularisation."""
    reg_margin: NonNegative = 1.0
    """Squared difference of means or deviations that goes unpunished, eq. 10."""
    boundary_weight: NonNegative = 1e-3
    """Weight of the boundary loss."""
    separation_weight: NonNegative = 1.0
    """Weight of the separation of the classes; for classification."""
    compactness_weight: NonNegative = 0.5
    """Weight of the compactness of each class; for classification."""
    centering_weight: NonNegative = 0.01
    """Weight of the mean logit's distance from 0; for classification."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage2Config:
    """Stage 2, calibration, eq. 13; for classification eq. 26, which has no weights."""

    epochs: Count = 5
    """Epochs of Stage 2; 0 leaves the stage out."""
    head_lr: Positive = 1e-4
    """Learning rate of everything outside the text encoder."""
    encoder_top_lr: Positive = 4e-5
    """Learning rate of the text encoder's upper layers."""
    encoder_base_lr: Positive = 2e-5
    """Learning rate of the rest of the text encoder."""
    top_layers: Count | None = None
    """Layers that count as upper; by default half of them."""
    weight_decay: NonNegative = 1e-2
    """AdamW's decay; biases and norms have none."""
    mae_weight: NonNegative = 0.3
    """Weight of the mean absolute error."""
    group_weight: NonNegative = 0.3
    """Weight of the ranking loss."""
    boundary_weight: NonNegative = 2e-2
    """Weight of the boundary loss."""
    fusion_dropout: Probability | None = None
    """Dropout after the fusion layer in Stage 2; by default that of Stage 1, model.fusion_dropout."""
    unified_dropout: Probability | None = None
    """Dropout after the unified encoder in Stage 2; by default that of Stage 1, model.unified_dropout."""
    start: Literal["best", "last"] = "best"
    """Which Stage 1 checkpoint it starts from: the best validation PairwiseAcc, or the last epoch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a stage is optimised, whatever its losses."""

    clip_norm: Positive = 1.0
    """Gradient norm that a step is clipped to."""
    warmup_fraction: Probability = 0.0
    """Share of the steps with a rising learning rate, before the cosine."""
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Arithmetic of the forward pass; auto is bfloat16 autocast on CUDA, float32 elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU that the trial has been given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """How a model is measured, on every split."""

    ties: Literal["drop", "literal"] = "drop"
    """PairwiseAcc, eq. 28, where labels or scores are equal: leave out pairs of equal labels and count equal scores as
    wrong, or take the equation as printed, under which the figure depends on the order of the rows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The budget of a search and how trials are proposed and stopped."""

    stage1_trials: PositiveCount = 30
    """Trials of Stage 1."""
    stage2_trials: PositiveCount = 30
    """Trials of Stage 2."""
    finalists: PositiveCount = 3
    """Best Stage 1 checkpoints that Stage 2 may start from."""
    concurrent: PositiveCount | None = None
    """Trials at a time; by default as many as the cluster has room for."""
    workers: PositiveCount = 1
    """Processes that train one trial together (data parallel)."""
    cpus_per_worker: PositiveCount = 1
    """CPUs, and so torch threads, of a worker."""
    gpus_per_worker: NonNegative = 0.0
    """GPUs of a worker; a fraction lets trials share one."""
    accelerator_type: str | None = None
    """Kind of GPU that a worker's node has to have, as Ray names it (A100, H100, T4); by default any."""
    pruning: bool = True
    """Stop trials early by ASHA."""
    grace_epochs: PositiveCount = 1
    """Epochs that every trial may run before ASHA judges it."""
    reduction_factor: Annotated[float, Digits, Field(gt=1)] = 3.0
    """ASHA keeps one in this many trials at each rung."""
    hang_minutes: Positive = 120.0
    """Minutes without the end of an epoch after which a trial counts as hung: its process is killed."""
    failures_in_a_row: PositiveCount = 5
    """Trials that fail one after the other until the search is given up."""
    ridge_baseline: bool = False
    """Fit ridge regression, or of two classes logistic regression, on the frozen text vectors, for the final table."""

    @property
    def worker_resources(self) -> dict[str, float]:
        """What a worker asks for, as Ray names it."""
        # A node has 1 of its kind of GPU: a mark, of which any number of workers take next to nothing.
        kind = {f"accelerator_type:{self.accelerator_type}": 0.001} if self.accelerator_type else {}
        amounts = {"CPU": float(self.cpus_per_worker), "GPU": self.gpus_per_worker, **kind}
        return {name: amount for name, amount in amounts.items() if amount}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's numbers, but the data."""

    seed: Count = 42
    """The seed from which every other one is derived."""
    features: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    pairs: PairConfig = dataclasses.field(default_factory=PairConfig)
    ranking: RankingConfig = dataclasses.field(default_factory=RankingConfig)
    classes: ClassesConfig = dataclasses.field(default_factory=ClassesConfig)
    stage1: Stage1Config = dataclasses.field(default_factory=Stage1Config)
    stage2: Stage2Config = dataclasses.field(default_factory=Stage2Config)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    metrics: MetricsConfig = dataclasses.field(default_factory=MetricsConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)

    def model_in(self, stage: Literal[1, 2]) -> ModelConfig:
        """The network as a stage trains it: Stage 2 may have dropouts of its own."""
        if stage == 1:
            return self.model
        own = {name: getattr(self.stage2, name) for name in DROPOUTS}
        return dataclasses.replace(self.model, **{name: rate for name, rate in own.items() if rate is not None})


DROPOUTS = ("fusion_dropout", "unified_dropout")
"""The model's settings that `stage2` may have values of its own for."""

EARLIER: Mapping[str, Any] = {"features.special_rows": "zero"}
"""What runs and models on record were made with before there was a setting, where its default is another now."""


def recorded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a run or model on record, by path: those that came later have what was done before them."""
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
"""The switches of Table 3, and the direct-MAE baseline, as settings."""


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
    """What a run's text encoder is called, by its settings: the last part of the hub's name or of the path."""
    if not ModelConfig(modalities=settings.get("model.modalities", "all")).sees_text:
        return "none"
    return str(settings["model.backbone"]).rstrip("/").rpartition("/")[2]


def reads(task: Task, path: str) -> bool:
    """Whether a setting decides anything for a task."""
    return path not in (_REGRESSION if task == "classification" else _CLASSIFICATION)


def check_read(task: Task, paths: Iterable[str]) -> None:
    """ConfigError where a setting that somebody asks for decides nothing for a task."""
    if unread := [path for path in paths if not reads(task, path)]:
        raise ConfigError(f"{', '.join(unread)}: not read by a data set for {task}; leave it out")


@cache
def _adapter() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """A configuration as path -> value, in the order of its fields."""
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
    """Every path that a setting may have."""
    return tuple(flatten(RunConfig()))


def nearest(word: str, choices: Sequence[str]) -> str:
    """`; did you mean X?` where a choice is near, else an empty string."""
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


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
    """Every unknown path and every value that its field does not admit, a line each."""
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
    """The configuration with these paths set. ConfigError lists every fault at once."""
    if faults := config_faults(values):
        raise ConfigError(faults_message(f"{source}: {len(faults)} fault(s)", faults))
    return _adapter().validate_python(_nest(values))


def check_margins(config: RunConfig, half_range: float, task: Task = "regression") -> list[str]:
    """What makes the margins contradict each other on labels that reach `half_range` either side.

    Nothing does for classification, whose margins are single ones.
    """
    ranking = config.ranking
    faults: list[str] = []
    if task == "classification":
        return faults
    if ranking.dynamic_margin and ranking.base_margin < ranking.intra_margin:
        faults.append(
            f"ranking.base_margin = {ranking.base_margin:g} is below ranking.intra_margin = "
            f"{ranking.intra_margin:g}: pairs of different groups would need less distance than pairs of one"
        )
    farthest = int(ranking.groups.rpartition(",")[2]) - 1
    widest = ranking.base_margin + (farthest * ranking.margin_step if ranking.dynamic_margin else 0)
    reach = 2 * config.model.output_scale * half_range / 3
    if widest > reach:
        faults.append(
            f"ranking.base_margin + {farthest} ranking.margin_step = {widest:g} exceeds {reach:g}, the widest "
            "difference that two scores can have"
        )
    if ranking.group_edges == "native" and half_range > 3:
        faults.append(
            f"ranking.group_edges = native covers [-3, 3], but labels reach {half_range:g} either side; give scaled"
        )
    return faults


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`--set path=value` arguments as path -> value; values are read as YAML scalars."""
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
    """The whole configuration, a section per group of settings."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
