"""Write a made search space as a YAML file with a comment on every line, for people to edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grcf_ray.errors import ConfigError
from grcf_ray.search.space import Choice, Dimension, Space

_COMMENTS: Mapping[str, str] = {
    "features.max_tokens": "longest text in subwords",
    "model.backbone": "text encoder: a Hugging Face name or a folder",
    "model.text_vector": "a text's vector: the mean over its tokens, or the first token's state (cls)",
    "model.frozen_layers": "bottom layers that are not trained, so their output is computed once for all trials",
    "model.unified_dropout": "dropout after the unified encoder",
    "model.modality_dropout": "probability that training leaves out audio, or vision",
    "model.fusion_dropout": "dropout after the fusion layer",
    "model.modalities": "whether audio and vision help",
    "pairs.pairs_per_epoch": "half the training utterances are one pass; in proportion to the time of an epoch",
    "pairs.pairs_per_group": "pairs that a loss compares: the batch size",
    "pairs.groups_per_step": "groups per optimizer step",
    "pairs.micro_batch_tokens": "tokens in one pass of the encoder: memory and speed only",
    "ranking.intra_margin": "margin of pairs in one ordinal group, in label units; scaled to the label range",
    "ranking.base_margin": "margin of pairs from different groups, in label units; scaled to the label range",
    "ranking.margin_step": "more margin for each group of distance, in label units; scaled to the label range",
    "classes.separation_margin": "distance between the logits of the two classes",
    "stage1.epochs": "epochs of a Stage 1 trial",
    "stage1.weight_decay": "weight decay of AdamW",
    "stage1.group_weight": "weight of the ranking loss",
    "stage1.reg_weight": "weight of the distribution regularisation; scaled to the label range",
    "stage1.reg_margin": "its margin, in squared label units; scaled to the label range",
    "stage1.boundary_weight": "weight of the boundary loss",
    "stage1.centering_weight": "weight of the loss that centres the logits",
    "stage1.compactness_weight": "weight of the loss that keeps a class together",
    "stage1.encoder_lr": "peak learning rate of the text encoder",
    "stage1.head_lr": "peak learning rate of all other parameters",
    "stage2.epochs": "epochs of a Stage 2 trial",
    "stage2.mae_weight": "weight of the mean absolute error",
    "stage2.group_weight": "weight of the ranking loss",
    "stage2.top_layers": "encoder layers with a learning rate of their own",
    "stage2.head_lr": "peak learning rate outside the text encoder",
    "stage2.encoder_top_lr": "peak learning rate of the encoder's top layers",
    "stage2.encoder_base_lr": "peak learning rate of the encoder's other layers",
    "stage2.weight_decay": "weight decay of AdamW",
    "stage2.fusion_dropout": "dropout after the fusion layer, in Stage 2",
    "search.stage1_trials": "number of Stage 1 trials",
    "search.stage2_trials": "number of Stage 2 trials",
    "search.finalists": "Stage 1 checkpoints that Stage 2 can start from",
    "search.cpus_per_worker": "CPUs of a trial",
    "search.reduction_factor": "ASHA lets the best one in this many trials pass each rung",
    "search.ridge_baseline": "compare with a linear baseline on the frozen text vectors",
}


def write_space(path: Path, space: Space, summary: str) -> None:
    """Write a space as a new file for `load_space`. ConfigError if the file exists or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(commented(space, summary))
    except FileExistsError as error:
        raise ConfigError(f"--init-space {path}: the file exists; give another name") from error
    except OSError as error:
        raise ConfigError(f"--init-space {path}: cannot be written ({error.strerror})") from error


def commented(space: Space, summary: str) -> str:
    """Return the YAML text of a space with a comment on every line."""
    lines = [
        f"# {summary}",
        "# Every setting: docs/settings.md. To search this space: --space FILE",
        f"dataset: {_word(space.dataset)}  # the margins below are for the labels of this data set",
        "fixed:  # settings of all trials",
        *(f"  {path}: {_word(value)}{_comment(path)}" for path, value in space.fixed.items()),
    ]
    for stage, heading in (("stage1", "ranking"), ("stage2", "calibration, from the best Stage 1 checkpoints")):
        searched: Mapping[str, Dimension] = getattr(space, stage)
        lines.append(f"{stage}:  # searched settings, {heading}; start is the first trial")
        lines += [f"  {path}: {_flow(dimension)}{_comment(path)}" for path, dimension in searched.items()]
    return "\n".join(lines) + "\n"


def _comment(path: str) -> str:
    return f"  # {_COMMENTS.get(path, 'your setting')}"


def _flow(dimension: Dimension) -> str:
    if isinstance(dimension, Choice):
        return f"{{choices: [{', '.join(map(_word, dimension.choices))}], start: {_word(dimension.start)}}}"
    low, high, start = map(_word, (dimension.low, dimension.high, dimension.start))
    return f"{{low: {low}, high: {high}, log: {_word(dimension.log)}, start: {start}}}"


def _word(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
