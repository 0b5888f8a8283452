"""Run a few steps of a trial in the naive way, in a process that `end_to_end.py` starts.

    python benchmarks/naive_trial.py TASK.json

Prints the CPU seconds of the trial's parts as JSON. The process imports no Ray, as a naive trial would not.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from grcf_ray.bench.step import LiteralStep, padded
from grcf_ray.config import RunConfig, build_config
from grcf_ray.data.batches import collate
from grcf_ray.data.features import Features, build_features
from grcf_ray.data.store import DatasetStore
from grcf_ray.metrics import split_metrics
from grcf_ray.model.pretrained import load_tokenizer
from grcf_ray.train.assemble import pretrained_backbone
from grcf_ray.train.checkpoint import checkpoint_tensors, write_checkpoint
from grcf_ray.train.job import StageJob, open_loop
from grcf_ray.train.stage import StageLoop, use_deterministic_torch


def measure(task: dict[str, Any]) -> dict[str, float]:
    """Return the CPU seconds of building, a step, validation and a checkpoint, and the steps of an epoch.

    `counted` is the time of all these calls together; the rest of the process's time is start-up.
    """
    job = StageJob(**task["job"])
    use_deterministic_torch(job.threads)
    config = build_config(job.settings)
    features = token_features(DatasetStore.open(Path(task["store"])), config, Path(task["cache"]))
    pretrained_backbone(config.model.backbone)
    before = time.process_time()
    loop = open_loop(job, features)
    building = time.process_time() - before
    step = next(loop.steps())
    literal = LiteralStep(loop, step, sort=False)
    loop.model.train()
    assert loop.folder is not None and loop.folder.local is not None
    checkpoint = loop.folder.local / "last.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "step": (lambda: _take_step(loop, literal), task["steps"]),
        "validation": (lambda: validate(loop, config.features.max_tokens), 1),
        "saving": (lambda: write_checkpoint(checkpoint, checkpoint_tensors(loop.model, loop.optimizer), {}), 1),
    }
    parts, counted = {"building": building}, building
    for name, (call, count) in calls.items():
        # The first call also imports and allocates, which is start-up.
        call()
        parts[name] = statistics.fmean(_seconds(call) for _ in range(count))
        counted += (1 + count) * parts[name]
    steps = loop.n_pairs / sum(len(group.pairs_P2) for group in step.groups)
    return {**parts, "steps": steps, "counted": counted}


def token_features(store: DatasetStore, config: RunConfig, cache: Path) -> Features:
    """Return the features without any cached output of frozen layers."""
    return build_features(store, load_tokenizer(config.model.backbone), config.features, cache=cache)


def _take_step(loop: StageLoop, literal: LiteralStep) -> None:
    loop.optimizer.zero_grad(set_to_none=True)
    literal.backward()
    nn.utils.clip_grad_norm_(loop.model.parameters(), loop.config.train.clip_norm)
    loop.optimizer.step()


@torch.no_grad()
def validate(loop: StageLoop, length: int) -> dict[str, float]:
    """Return validation metrics; utterances are encoded in the split's order, each text padded to a length."""
    loop.model.eval()
    features, valid = loop.features, loop.features.valid
    size = max(1, loop.config.pairs.micro_batch_tokens // length)
    scores = []
    for start in range(0, len(valid), size):
        index_B = np.arange(start, min(start + size, len(valid)))
        batch = padded(collate(features, valid, index_B), length, features.pad_token_id)
        scores.append(loop.model.score(loop.model.encode(batch.to(loop.device, loop.dtype))))
    loop.model.train()
    return split_metrics(
        torch.cat(scores).double().cpu().numpy(),
        valid.label_N,
        protocol=loop.protocol,
        limit=features.half_range,
        origin=features.center,
        ties=loop.config.metrics.ties,
    )


def _seconds(call: Callable[[], object]) -> float:
    before = time.process_time()
    call()
    return time.process_time() - before


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
