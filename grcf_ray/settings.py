"""Every setting of a run, with its default and its meaning: one frozen dataclass per section.

The string after each field says what the setting does, its unit, and the equation or table of the paper that it comes
from. The defaults are the paper's optimum for CMU-MOSI (Table 13); where the paper prints no value, they are ours.
Margins and scores are in label units; learning rates and weights have no unit.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from grcf_ray.plain_yaml import DECIMAL
from grcf_ray.plugins import model_names

Task = Literal["regression", "classification"]
Modalities = Literal["all", "text", "audio", "vision", "text+audio", "text+vision", "audio+vision"]


def _number(value: Any) -> Any:
    # Pydantic alone would accept true as 1, and 010 and 1_000 as numbers.
    if isinstance(value, bool) or (isinstance(value, str) and not DECIMAL.fullmatch(value.strip())):
        raise PydanticCustomError("decimal", "Input should be a number in decimal digits")
    return value


def _model_name(name: str) -> str:
    if name not in model_names():
        raise PydanticCustomError("model_name", "Input should be one of {names}", {"names": ", ".join(model_names())})
    return name


Digits = BeforeValidator(_number)
Positive = Annotated[float, Digits, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Digits, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Digits, Field(ge=0, lt=1)]
Count = Annotated[int, Digits, Field(ge=0)]
PositiveCount = Annotated[int, Digits, Field(ge=1)]
# Runs of the first releases recorded the words yes and no as true and false.
Word = BeforeValidator(lambda value: ("yes" if value else "no") if isinstance(value, bool) else value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Features: computed once from the utterance table and shared by all trials."""

    max_tokens: Annotated[int, Digits, Field(ge=4)] = 128
    """Longest token sequence of an utterance, special tokens included. Longer input is cut; the oldest context goes
    first."""
    standardise: bool = True
    """Scale each audio and vision column to zero mean and unit deviation, using training-split statistics."""
    context: bool = True
    """Put the preceding utterances, if the data set has them, before the text: [CLS] context [SEP] text [SEP]."""
    special_rows: Literal["none", "zero"] = "none"
    """Audio and vision rows of special tokens and context, in word-aligned data. `none` leaves them out of attention
    pooling (eqs. 1-2); `zero` pools a row of zeros, as MAG pipelines do."""
    lowercase: Annotated[Literal["auto", "yes", "no"], Word] = "auto"
    """Lower-case the text. `auto` does so if the data set says that its transcripts are upper case."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a model that has none of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: for GRCF that of section 3.1, for classification that of appendix A.1."""

    name: Annotated[str, AfterValidator(_model_name)] = "grcf"
    """The model, as `grcf models list` prints it. Its own options have paths of their own, such as `lmf.rank`."""
    backbone: str = "microsoft/deberta-v3-base"
    """Text encoder: a Hugging Face name or a local folder (section 3.1; Table 11 compares others)."""
    text_vector: Literal["cls", "mean", "last"] = "cls"
    """Text representation z_t: the state of the first token (section 3.1), the mean over tokens (appendix A.1), or the
    state of the last token. `cls` is refused for left-to-right backbones such as GPT-2."""
    modalities: Modalities = "all"
    """Modalities that the model uses. `all` means text and every other modality of the data set. Without text the model
    has no text encoder, and the task must be regression."""
    textless_width: PositiveCount = 768
    """Width of the fused representation of a model without text. With text, the width of the text encoder applies.
    Regression only."""
    frozen_layers: Count | Literal["all"] = 0
    """Number of bottom layers of the text encoder to freeze, together with the embeddings. Their output is computed
    once per run."""
    fusion_dropout: Probability = 0.4
    """Dropout rate after the fusion layer, eq. 4 (Table 13)."""
    unified_dropout: Probability = 0.2
    """Dropout rate after the unified encoder (section 3.1, Table 13)."""
    modality_dropout: Probability = 0.0
    """Probability that a scored slot loses its audio during training; vision is dropped independently at the same rate.
    Not in the paper."""
    output_scale: Positive = 3.5
    """Scale of the tanh that bounds the score, eq. 5, for labels in [-3, 3]. It grows with the label range. Regression
    only."""
    attention_heads: PositiveCount = 4
    """Number of heads of the cross-attention, eq. 14. Classification only."""
    non_text: Literal["rows", "pooled"] = "rows"
    """Keys and values of the cross-attention, eq. 14: every audio and vision row, or one attention-pooled vector per
    modality (eqs. 1-2). Classification only."""
    gate: Literal["scalar", "vector"] = "scalar"
    """Gate of eq. 15: one value per sample, or one per dimension. Classification only."""
    options: Any = dataclasses.field(default_factory=NoOptions)
    """The model's own options, an instance of the class that its card names."""

    @property
    def sees_text(self) -> bool:
        """Whether the network has a text encoder."""
        return self.modalities == "all" or "text" in self.modalities

    @property
    def encoder(self) -> str:
        """Return the name or path of the text encoder, or `none` if the model reads no text."""
        return self.backbone if self.sees_text else "none"

    def sees(self, modality: str) -> bool:
        """Return whether the network has a branch for a modality, provided that the data set has it."""
        return self.modalities == "all" or modality in self.modalities


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Pairs, groups of pairs, and optimizer steps (appendix C.2; batch rows of Table 13)."""

    pairs_per_epoch: PositiveCount | None = None
    """Number of pairs M drawn per epoch, eq. 27. By default 39 per training utterance, the ratio of the paper's 50,000
    for MOSI."""
    pairs_per_group: PositiveCount = 96
    """Number of pairs in a group: the batch size per device of Table 13. Each loss is computed per group."""
    groups_per_step: PositiveCount = 8
    """Number of groups per optimizer step, over all workers: the gradient accumulation of Table 13."""
    pairing: Literal["sampled", "all"] = "sampled"
    """Pairs that a group compares: its sampled pairs, or every pair of its distinct utterances."""
    redraw: bool = True
    """Draw new pairs each epoch; otherwise keep one set for the whole run."""
    micro_batch_tokens: PositiveCount = 1024
    """Largest number of padded tokens in one pass of the text encoder. It affects memory and speed only."""
    activation_tokens: PositiveCount | None = None
    """Largest number of padded tokens whose activations a step keeps for the backward pass. Beyond it the step computes
    them twice, for the same gradient. By default what the free memory of a GPU holds, and on a CPU two groups of
    full-length texts (4 pairs_per_group x max_tokens)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """The group-aware ranking loss, eqs. 6-9. Stage 2 inherits these settings from its Stage 1 trial."""

    groups: Literal["overlap,5", "overlap,3", "overlap,7", "strict,5"] = "overlap,5"
    """Ordinal groups of the dynamic margin (section 3.2, Table 4). Regression only."""
    group_edges: Literal["scaled", "native"] = "scaled"
    """Edges of the groups: scaled to the label range, or as printed for [-3, 3]. Regression only."""
    intra_margin: Positive = 0.1
    """Margin m_intra of a pair that shares a group, in label units, eq. 7. Regression only."""
    base_margin: Positive = 0.5
    """Margin m_base of a pair from different groups, in label units, eq. 7. Regression only."""
    margin_step: NonNegative = 0.1
    """Margin m_step added for each group of distance, in label units, eq. 7. Regression only."""
    advantage_weighting: bool = True
    """Weight each pair by ReLU(-advantage), eq. 9; otherwise every pair has weight 1 (Table 3). For classification it
    switches the weights of eqs. 19 and 22."""
    dynamic_margin: bool = True
    """Let the margin follow the group distance, eq. 7; otherwise it is m_base (Table 3). Regression only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassesConfig:
    """Margins of the classification losses, eqs. 18-24, in logits. The paper prints no values."""

    separation_margin: Positive = 1.0
    """Margin m_sep between the logits of a positive and a negative sample, eq. 18. Classification only."""
    boundary_margin: NonNegative = 0.5
    """Distance m_b from 0 that each logit has to keep on the side of its class, eq. 24. Classification only."""
    advantage_clip: Positive = 2.0
    """Bound A_clip of the advantage that weights pairs of one class, eq. 22. Classification only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage1Config:
    """Stage 1, structural foundation: eq. 12, for classification eq. 17."""

    epochs: Count = 17
    """Number of epochs of Stage 1 (Table 13); 0 skips the stage."""
    head_lr: Positive = 1e-5
    """Peak learning rate of all parameters outside the text encoder (Table 13)."""
    encoder_lr: Positive = 8e-6
    """Peak learning rate of the text encoder (Table 13)."""
    weight_decay: NonNegative = 2e-2
    """Weight decay of AdamW; biases and norms have none (Table 13)."""
    group_weight: NonNegative = 0.9
    """Weight of the ranking loss L_group, eq. 12 (Table 13). Regression only."""
    reg_weight: NonNegative = 5e-3
    """Weight of the distribution regularisation L_reg, eq. 12 (Table 13). Regression only."""
    reg_margin: NonNegative = 1.0
    """Margin gamma of L_reg, eq. 10: the squared difference of means or deviations without a penalty, in squared label
    units (Table 13). Regression only."""
    boundary_weight: NonNegative = 1e-3
    """Weight of the boundary loss L_bound, eq. 12 (Table 13), for classification eq. 17."""
    separation_weight: NonNegative = 1.0
    """Weight of the separation loss L_sep, eq. 17. Classification only."""
    compactness_weight: NonNegative = 0.5
    """Weight of the compactness loss L_comp, eq. 17. Classification only."""
    centering_weight: NonNegative = 0.01
    """Weight of the loss L_cal, the distance of the mean logit from 0, eqs. 17 and 25. Classification only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage2Config:
    """Stage 2, calibration: eq. 13, for classification eq. 26, which has no weights."""

    epochs: Count = 5
    """Number of epochs of Stage 2 (Table 13); 0 skips the stage."""
    head_lr: Positive = 1e-4
    """Peak learning rate of all parameters outside the text encoder (Table 13)."""
    encoder_top_lr: Positive = 4e-5
    """Peak learning rate of the top layers of the text encoder (Table 13)."""
    encoder_base_lr: Positive = 2e-5
    """Peak learning rate of the rest of the text encoder: embeddings and lower layers (Table 13)."""
    top_layers: Count | None = None
    """Number of layers that use `encoder_top_lr`. By default the upper half."""
    weight_decay: NonNegative = 1e-2
    """Weight decay of AdamW; biases and norms have none (Table 13)."""
    mae_weight: NonNegative = 0.3
    """Weight of the mean absolute error L_mae, eq. 13 (Table 13). Regression only."""
    group_weight: NonNegative = 0.3
    """Weight of the ranking loss L_group, eq. 13 (Table 13). Regression only."""
    boundary_weight: NonNegative = 2e-2
    """Weight of the boundary loss L_bound, eq. 13 (Table 13). Regression only."""
    fusion_dropout: Probability | None = None
    """Dropout rate after the fusion layer in Stage 2. By default `model.fusion_dropout`."""
    unified_dropout: Probability | None = None
    """Dropout rate after the unified encoder in Stage 2. By default `model.unified_dropout`."""
    start: Literal["best", "last"] = "best"
    """Stage 1 checkpoint to start from: the one with the best validation PairwiseAcc, or the last epoch's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation, in both stages (section 4.1)."""

    clip_norm: Positive = 1.0
    """Largest gradient norm of a step; larger gradients are clipped to it (section 4.1)."""
    warmup_fraction: Probability = 0.0
    """Fraction of the steps with a linearly rising learning rate, before the cosine decay. Not in the paper."""
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Arithmetic of the text encoder. `auto` is bfloat16 autocast (section 4.1: mixed precision) if the GPUs of the
    trials have units for it, or without GPUs if their CPUs multiply matrices at least 1.5 times as fast in it; else
    float32. A run records the resolved value."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on. `auto` uses the GPU if the trial has one."""
    device_features_gb: NonNegative = 2.0
    """Largest training split, in GB of features, that a trial keeps on its GPU. A larger one is sent step by step. No
    effect on results, or on a CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints, which are written in the background and change no result."""

    minutes: NonNegative = 10.0
    """Minutes between two checkpoints with the optimizer's state in the run's folder: the most training that a lost
    node costs. 0 writes one after every epoch. The node itself keeps one of every epoch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Metrics, on every split."""

    ties: Literal["drop", "literal"] = "drop"
    """Ties in PairwiseAcc, eq. 28. `drop` leaves out pairs of equal labels and counts equal scores as wrong. `literal`
    is the printed equation, whose value depends on the row order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Budget and resources of a search, and its rules for trials."""

    stage1_trials: PositiveCount = 30
    """Number of Stage 1 trials."""
    stage2_trials: PositiveCount = 30
    """Number of Stage 2 trials."""
    finalists: PositiveCount = 3
    """Number of best Stage 1 checkpoints that Stage 2 can start from."""
    ensemble: PositiveCount = 3
    """Number of best models of the last stage whose mean score is reported beside the winner's; 1 reports none."""
    concurrent: PositiveCount | None = None
    """Number of concurrent trials. By default as many as fit on the cluster."""
    workers: PositiveCount = 1
    """Number of data-parallel workers per trial."""
    cpus_per_worker: PositiveCount = 1
    """CPUs per worker, and the number of its torch threads."""
    gpus_per_worker: Literal["auto"] | NonNegative = "auto"
    """GPUs per worker: 0, 1, or a fraction, with which trials share a GPU. `auto` is 1 if the cluster has GPUs or its
    autoscaler can add them, else 0. A run records the resolved value."""
    accelerator_type: str | None = None
    """GPU type that the node of a worker must have, by its name in Ray (A100, H100, T4). By default any."""
    pruning: bool = True
    """Let ASHA stop weak trials early, while others wait for their slots."""
    grace_epochs: PositiveCount = 1
    """Epochs that every trial runs before ASHA can stop it."""
    reduction_factor: Annotated[float, Digits, Field(gt=1)] = 3.0
    """Reduction factor of ASHA: the best 1 in this many trials passes each rung."""
    hang_minutes: Positive | None = None
    """Minutes without a finished epoch after which a trial counts as hung and its process is killed. By default ten
    times the median epoch of the stage's trials, but at least 10 minutes; 120 minutes until the first epoch."""
    failures_in_a_row: PositiveCount = 5
    """Number of consecutive failed trials that ends the search."""
    ridge_baseline: bool = False
    """Add a baseline to the final table: ridge regression on the frozen text vectors, for classification logistic
    regression."""

    @property
    def gpus(self) -> float:
        """GPUs per worker. An `auto` that no cluster has resolved counts as 0."""
        return 0.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker

    @property
    def worker_resources(self) -> dict[str, float]:
        """Resources of a worker, under Ray's names."""
        # A node has 1 unit of its accelerator type. It marks the type, so a worker takes next to nothing of it.
        kind = {f"accelerator_type:{self.accelerator_type}": 0.001} if self.accelerator_type else {}
        amounts = {"CPU": float(self.cpus_per_worker), "GPU": self.gpus, **kind}
        return {name: amount for name, amount in amounts.items() if amount}


DROPOUTS = ("fusion_dropout", "unified_dropout")
"""Settings of the model that `stage2` can override."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run. With the data they determine its numbers."""

    seed: Count = 42
    """Seed from which all other seeds are derived (Table 13)."""
    features: FeatureConfig = dataclasses.field(default_factory=FeatureConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    pairs: PairConfig = dataclasses.field(default_factory=PairConfig)
    ranking: RankingConfig = dataclasses.field(default_factory=RankingConfig)
    classes: ClassesConfig = dataclasses.field(default_factory=ClassesConfig)
    stage1: Stage1Config = dataclasses.field(default_factory=Stage1Config)
    stage2: Stage2Config = dataclasses.field(default_factory=Stage2Config)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = dataclasses.field(default_factory=MetricsConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)

    def model_in(self, stage: Literal[1, 2]) -> ModelConfig:
        """Return the settings of the network in a stage; Stage 2 can override the dropout rates."""
        if stage == 1:
            return self.model
        overrides = {name: getattr(self.stage2, name) for name in DROPOUTS}
        return dataclasses.replace(self.model, **{name: rate for name, rate in overrides.items() if rate is not None})
