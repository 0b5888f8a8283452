"""What one rank of several computes: run by test_stage, in processes of their own and once within it.

python tests/train/ranks.py FOLDER RANK WORLD
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch import nn

from grcf_ray.config import build_config
from grcf_ray.errors import ConfigError
from grcf_ray.train.assemble import initial_model
from grcf_ray.train.stage import StageLoop

SCENARIOS: dict[str, tuple[Literal[1, 2], dict[str, Any]]] = {
    # Three groups a step for two ranks.
    "uneven": (1, {"pairs.pairs_per_epoch": 100}),
    "uneven-all-pairs": (2, {"pairs.pairs_per_epoch": 100, "pairs.pairing": "all"}),
    # The last step is one group of five pairs.
    "short": (2, {"pairs.pairs_per_epoch": 36 + 5}),
    # An epoch of one step of one group: the second rank never has any.
    "idle": (1, {"pairs.pairs_per_epoch": 10}),
}


def without_dropout(model: nn.Module) -> None:
    """Nothing is left to chance."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def measure(folder: Path, rank: int, world: int) -> None:
    """Gradients of each step, then an epoch with its metrics, of all scenarios; to files of rank and world."""
    features = pickle.loads((folder / "features.pkl").read_bytes())
    settings = json.loads((folder / "settings.json").read_text())
    tensors, figures = {}, {}
    for name, (stage, changes) in SCENARIOS.items():
        config = build_config(settings | changes)
        model = initial_model(config.model, features, seed=3)
        without_dropout(model)
        loop = StageLoop(model, features, config, stage, seed=3, protocol="mosi", folder=folder / f"{name}-{world}")
        for index, step in enumerate(loop._steps()):
            loop.optimizer.zero_grad()
            loop.backward(step)
            grads = [p.grad.reshape(-1) for p in loop.model.parameters() if p.grad is not None]
            tensors[f"{name}.gradient.{index}"] = torch.cat(grads)
        figures[name] = loop.run_epoch()
        tensors[f"{name}.weights"] = torch.cat([p.detach().reshape(-1) for p in loop.model.parameters()])
    figures["too many"] = too_many(features, build_config(settings | {"pairs.groups_per_step": 1}))
    save_file(tensors, folder / f"{rank}-of-{world}.safetensors")
    (folder / f"{rank}-of-{world}.json").write_text(json.dumps(figures))


def too_many(features: Any, config: Any) -> str:
    """What is said of more ranks than groups; nothing where there are enough."""
    try:
        StageLoop(initial_model(config.model, features, seed=3), features, config, 1, seed=3, protocol="mosi")
    except ConfigError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    place, this_rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place / 'meet'}", rank=this_rank, world_size=ranks)
    measure(place, this_rank, ranks)
    dist.destroy_process_group()
