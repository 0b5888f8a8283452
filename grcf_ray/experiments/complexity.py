"""Table 12: parameters by component, and the cost of one utterance. It needs neither weights nor a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from grcf_ray.config import RunConfig, Task, encoder_name, flatten
from grcf_ray.data import datasets
from grcf_ray.data.batches import Batch
from grcf_ray.experiments import paper
from grcf_ray.experiments.result import ExperimentResult
from grcf_ray.model.base import GrcfModel
from grcf_ray.model.build import build_model, parameter_table
from grcf_ray.model.pretrained import backbone_config, backbone_from_config
from grcf_ray.tables import Column, Table

TOKENS = 50
"""Subwords of the measured utterance: the length to which common code pads MOSI."""
_REPETITIONS = 5


def described_model(config: RunConfig, task: Task, dims: Mapping[str, int | None]) -> GrcfModel:
    """Return the network of a configuration with random weights, on torch's default device."""
    kept = {name: dim if config.model.sees(name) else None for name, dim in dims.items()}
    backbone = backbone_from_config(backbone_config(config.model.backbone)) if config.model.sees_text else None
    return build_model(
        backbone, config.model, task=task, audio_dim=kept["audio"], vision_dim=kept["vision"], half_range=3.0
    )


def complexity(
    config: RunConfig, dataset: str, *, task: Task, dims: Mapping[str, int | None], threads: int
) -> ExperimentResult:
    """Count parameters by component, beside the paper's; measure operations, memory and time per utterance.

    dims: the widths of audio and vision; None for a modality that the data lack.
    """
    facts = datasets.find(dataset)
    with torch.device("meta"):
        shapes = described_model(config, task, dims)
    counts = parameter_table(shapes)
    counts.append(("GRCF (total)", sum(count for _, count in counts)))
    encoder = encoder_name(flatten(config))
    same = facts is not None and facts.task == task and encoder == (facts.paper_backbone or "").rpartition("/")[2]
    printed = paper.COMPLEXITY.get(dataset, {}) if same else {}
    by_name = dict(counts)
    rows: list[dict[str, Any]] = [
        {"title": name, "paper": printed.get(name), "count": by_name.get(name)}
        for name in dict.fromkeys([*by_name, *printed])
    ]
    parameters = Table(
        "parameters",
        "Parameters by component",
        (Column("title", "component"), Column("paper", "paper", "{:,}"), Column("count", "ours", "{:,}")),
        rows,
    )
    total = by_name["GRCF (total)"]
    trained = sum(p.numel() for p in shapes.parameters() if p.requires_grad)
    seconds, flops = _cost(config, task, dims, threads)
    cost = Table(
        "cost",
        f"Cost of an utterance of {TOKENS} subwords",
        (Column("title", "figure"), Column("value", "value", "{:,.4g}"), Column("unit", "unit")),
        [
            {"title": "forward pass", "value": flops / 1e9, "unit": "GFLOP"},
            {"title": "forward pass, one utterance at a time", "value": 1000 * seconds, "unit": "ms"},
            {"title": "weights in float32", "value": 4 * total / 1e6, "unit": "MB"},
            {"title": "training: weights, gradients, AdamW", "value": (4 * total + 12 * trained) / 1e6, "unit": "MB"},
        ],
        (
            f"time: median of {_REPETITIONS} passes on {'a GPU' if torch.cuda.is_available() else 'the CPU'}, "
            f"{threads} thread(s), random weights",
            "floating point operations: of attention and matrix products; a multiplication and an addition are two",
            "training: memory without activations, which grow with the batch",
        ),
    )
    return ExperimentResult(
        name="complexity",
        title=f"Complexity of GRCF on {facts.title if facts else dataset}, {encoder}",
        paper="Table 12",
        tables=[parameters, cost],
        notes=("ITHP and CaMIB: as the paper prints them.",) if printed else (),
    )


def _batch(dims: dict[str, int], device: torch.device) -> Batch:
    def rows(name: str) -> tuple[Tensor | None, Tensor | None]:
        if name not in dims:
            return None, None
        return torch.zeros(1, TOKENS, dims[name], device=device), torch.ones(1, TOKENS, dtype=torch.bool, device=device)

    (audio, audio_mask), (vision, vision_mask) = rows("audio"), rows("vision")
    return Batch(
        token_BL=torch.ones(1, TOKENS, dtype=torch.long, device=device),
        mask_BL=torch.ones(1, TOKENS, dtype=torch.bool, device=device),
        hidden_BLD=None,
        vector_BD=None,
        audio_BLA=audio,
        audio_mask_BL=audio_mask,
        vision_BLV=vision,
        vision_mask_BL=vision_mask,
    )


def _cost(config: RunConfig, task: Task, dims: Mapping[str, int | None], threads: int) -> tuple[float, int]:
    """Return the seconds and the floating point operations of a forward pass of one utterance."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = described_model(config, task, dims).eval().to(device)
        batch, seconds = _batch(model.modality_dims, device), []

        @torch.no_grad()
        def forward() -> None:
            model.score(model.encode(batch)).cpu()

        for _ in range(_REPETITIONS + 1):
            start = time.perf_counter()
            forward()
            seconds.append(time.perf_counter() - start)
        # Fused attention is not counted on every device; its parts are.
        if model.text_encoder is not None:
            model.text_encoder.backbone.set_attn_implementation("eager")  # type: ignore[operator]
        with FlopCounterMode(display=False) as counter:
            forward()
    finally:
        torch.set_num_threads(before)
    # The first pass allocates.
    return statistics.median(seconds[1:]), counter.get_total_flops()
