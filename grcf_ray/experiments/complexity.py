"""Table 12: parameters by component, and the cost of one utterance. It needs neither weights nor a run."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from grcf_ray.config import ModelConfig, RunConfig, encoder_name, flatten, short_name
from grcf_ray.data import datasets
from grcf_ray.data.batches import Batch
from grcf_ray.data.datasets import DatasetFacts
from grcf_ray.data.schema import TableInfo
from grcf_ray.experiments.paper import TABLES
from grcf_ray.experiments.result import ExperimentResult
from grcf_ray.model.build import described_model, parameter_table
from grcf_ray.model.card import card_of
from grcf_ray.search.winner import available_threads
from grcf_ray.tables import Column, Table

if TYPE_CHECKING:
    # Without a run, the command must not pay for Ray.
    from grcf_ray.experiments.context import ExperimentContext

TOKENS = 50
"""Subwords of the measured utterance: the length to which common code pads MOSI."""
_REPETITIONS = 5


def complexity(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Table 12 for the run's configuration; a model's cost follows from its shape, so nothing is trained."""
    return complexity_of(context.config, context.store.info)


def complexity_of(config: RunConfig, data: TableInfo | DatasetFacts) -> ExperimentResult:
    """Count parameters by component, beside the paper's; measure operations, memory and time per utterance."""
    facts, threads = datasets.find(data.name), available_threads()
    with torch.device("meta"):
        shapes = described_model(config, data)
    counts = dict(parameter_table(shapes))
    title = card_of(config.model.name).title
    total = counts[f"{title} (total)"] = sum(counts.values())
    encoder = encoder_name(flatten(config))
    same = facts is not None and facts.task == data.task and encoder == short_name(facts.paper_backbone or "")
    same &= config.model.name == ModelConfig.name
    printed = TABLES["complexity"].get(data.name, {}) if same else {}
    parameters = Table(
        "parameters",
        "Parameters by component",
        (Column("title", "component"), Column("paper", "paper", "{:,}"), Column("count", "ours", "{:,}")),
        [
            {"title": name, "paper": printed.get(name), "count": counts.get(name)}
            for name in dict.fromkeys([*counts, *printed])
        ],
    )
    trained = sum(p.numel() for p in shapes.parameters() if p.requires_grad)
    seconds, flops = _cost(config, data, threads)
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
        title=f"Complexity of {title} on {facts.title if facts else data.name}, {encoder}",
        tables=[parameters, cost],
        notes=("ITHP and CaMIB: as the paper prints them.",) if printed else (),
    )


def _cost(config: RunConfig, data: TableInfo | DatasetFacts, threads: int) -> tuple[float, int]:
    """Return the seconds and the floating point operations of a forward pass of one utterance."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = described_model(config, data).eval().to(device)
        widths, ones_BL = model.modality_dims, torch.ones(1, TOKENS, dtype=torch.bool)
        audio, vision = (
            (torch.zeros(1, TOKENS, widths[name]), ones_BL) if name in widths else (None, None)
            for name in ("audio", "vision")
        )
        batch, seconds = Batch(ones_BL.long(), ones_BL, None, None, *audio, *vision, full=True).to(device), []

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
