"""What one rank of several computes: run by test_stage_ranks, in processes of their own and once within it.

python tests/train/ranks.py FOLDER RANK WORLD
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pickle
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from alternating import alternating
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist

from grcf_ray.config import build_config
from grcf_ray.data.batches import Batch
from grcf_ray.errors import ConfigError
from grcf_ray.storage import storage_path
from grcf_ray.train.assemble import initial_model
from grcf_ray.train.job import JobRunner, StageJob
from grcf_ray.train.stage import StageLoop

SCENARIOS: dict[str, tuple[Literal[1, 2], dict[str, Any]]] = {
    # Three groups a step for two ranks.
    "uneven": (1, {"pairs.pairs_per_epoch": 100}),
    "uneven-all-pairs": (2, {"pairs.pairs_per_epoch": 100, "pairs.pairing": "all"}),
    # The last step is one group of five pairs.
    "short": (2, {"pairs.pairs_per_epoch": 36 + 5}),
    # An epoch of one step of one group: the second rank never has any.
    "idle": (1, {"pairs.pairs_per_epoch": 10}),
    # Activations that no rank may keep; and those that only the rank with the group has too many of.
    "uneven-twice": (1, {"pairs.pairs_per_epoch": 100, "pairs.activation_tokens": 1}),
    # The last rank runs out of memory in its first step.
    "uneven-out-of-memory": (1, {"pairs.pairs_per_epoch": 100}),
    "idle-twice": (1, {"pairs.pairs_per_epoch": 10, "pairs.activation_tokens": 20}),
    # A model with terms of its own and a second phase.
    "own-terms": (2, {"pairs.pairs_per_epoch": 100}),
    "own-terms-idle": (1, {"pairs.pairs_per_epoch": 10}),
    "rival": (2, {"pairs.pairs_per_epoch": 100, "model.name": "tfn"}),
    "uneven-bfloat16": (1, {"pairs.pairs_per_epoch": 100, "train.precision": "bfloat16"}),
}


def without_dropout(model: nn.Module) -> None:
    """Nothing is left to chance."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def run_out_once(loop: StageLoop) -> None:
    """Raise the error of a GPU without free memory at the second micro-batch."""
    encode, calls = loop.model.encode, itertools.count()

    def failing(batch: Batch) -> Tensor:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(batch)

    loop.model.encode = failing  # type: ignore[method-assign]


def measure(folder: Path, rank: int, world: int) -> None:
    """Gradients of each step, then an epoch with its metrics, of all scenarios; to files of rank and world."""
    features = pickle.loads((folder / "features.pkl").read_bytes())
    settings = json.loads((folder / "settings.json").read_text())
    tensors, figures, notes = {}, {}, {}
    for name, (stage, changes) in SCENARIOS.items():
        config = build_config(settings | changes)
        own = name.startswith("own-terms")
        model = alternating(config, features) if own else initial_model(config.model, features, seed=3)
        without_dropout(model)
        place = storage_path(folder / f"{name}-{world}")
        loop = StageLoop(model, features, config, stage, seed=3, protocol="mosi", folder=place)
        if name.endswith("out-of-memory") and rank == world - 1:
            run_out_once(loop)
        for index, step in enumerate(loop.steps()):
            loop.optimizer.zero_grad()
            loop.backward(step)
            grads = [p.grad.reshape(-1) for p in loop.model.parameters() if p.grad is not None]
            tensors[f"{name}.gradient.{index}"] = torch.cat(grads)
        figures[name] = loop.run_epoch()
        notes[name] = loop.notes
        loop.interrupt()
        tensors[f"{name}.weights"] = torch.cat([p.detach().reshape(-1) for p in loop.model.parameters()])
    figures["notes"] = notes
    figures["too many"] = too_many(features, build_config(settings | {"pairs.groups_per_step": 1}))
    if world > 1:
        figures["jobs"] = jobs(folder, rank, features, settings)
    save_file(tensors, folder / f"{rank}-of-{world}.safetensors")
    (folder / f"{rank}-of-{world}.json").write_text(json.dumps(figures))


def too_many(features: Any, config: Any) -> str:
    """What is said of more ranks than groups; nothing where there are enough."""
    try:
        StageLoop(initial_model(config.model, features, seed=3), features, config, 1, seed=3, protocol="mosi")
    except ConfigError as error:
        return str(error)
    return ""


def jobs(folder: Path, rank: int, features: Any, settings: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The results of one runner's jobs, which run together with those of the other ranks, by what befalls them."""
    runner = JobRunner(features)
    job = StageJob(
        stage=1,
        seed=3,
        settings={**settings, "stage1.epochs": 3},
        protocol="mosi",
        folder=str(folder / "whole"),
        keeps_last=True,
        initial=None,
        initial_sha256=None,
        threads=1,
        gpu=False,
    )

    def results(job: StageJob, steps: int = 3) -> list[dict[str, Any]]:
        runner.start(job)
        return [runner.step() for _ in range(steps)]

    def changed(**changes: Any) -> StageJob:
        return dataclasses.replace(job, **changes)

    outcomes = {"whole": results(job)}
    # Rank 1 alone has no initial weights.
    initial = str(folder / ("whole" if rank == 0 else "missing") / "last.safetensors")
    outcomes["alone"] = results(changed(folder=str(folder / "alone"), initial=initial), 1)
    # Rank 0 alone finds the checkpoint, of a newer release.
    newer = folder / "newer" / "whole-00001.safetensors"
    if rank == 0:
        newer.parent.mkdir()
        state = json.dumps({"format": 99})
        save_file({}, newer, {"state": state, "sha256": hashlib.sha256(state.encode()).hexdigest()})
    outcomes["newer"] = results(changed(folder=str(newer.parent if rank == 0 else folder / "elsewhere")), 1)
    damaged = changed(folder=str(folder / "damaged"))
    results(damaged, 2)
    runner.close()
    dist.barrier()
    if rank == 0:
        (folder / "damaged" / "whole-00002.safetensors").write_bytes(b"")
    dist.barrier()
    outcomes["damaged"] = results(damaged, 2)
    return outcomes


if __name__ == "__main__":
    place, this_rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place / 'meet'}", rank=this_rank, world_size=ranks)
    measure(place, this_rank, ranks)
    dist.destroy_process_group()
