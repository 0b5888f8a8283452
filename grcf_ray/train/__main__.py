"""python -m grcf_ray.train: one configuration through both stages, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from grcf_ray import console

if TYPE_CHECKING:
    from grcf_ray.config import RunConfig

app = console.make_app("Train one configuration through both stages, without Ray.")


@app.command()
def train(
    dataset: str = typer.Option(..., metavar="NAME", help="A known data set, or your own."),
    data: Path | None = typer.Option(
        None, metavar="FILE|DIR", help="Its files; default $GRCF_DATA/NAME, then ./data/NAME."
    ),
    label_range: tuple[float, float] | None = typer.Option(
        None, metavar="A B", help="Lowest and highest label of your own data."
    ),
    space: Path | None = typer.Option(
        None,
        metavar="FILE",
        help="Search space whose starting point to train; default the one that ships for NAME.",
    ),
    set_: list[str] = typer.Option([], "--set", metavar="PATH=VALUE", help="A setting; may be repeated."),
    backbone: str | None = typer.Option(None, metavar="NAME|DIR", help="Text encoder."),
    ablation: str = typer.Option("full", metavar="NAME", help="One of the switches of Table 3; see below."),
    out: Path = typer.Option(
        Path("runs/train"), metavar="DIR", help="Folder for checkpoints; continued if it has any."
    ),
    threads: int | None = typer.Option(None, metavar="N", help="Torch threads; default all CPUs."),
    print_model: bool = typer.Option(False, "--print-model", help="Print the parameter table, train nothing."),
    print_config: bool = typer.Option(False, "--print-config", help="Print the configuration as YAML, train nothing."),
) -> None:
    """Train one configuration through both stages; validation figures after each epoch. Test is not read.

    \b
    Examples:
      python -m grcf_ray.train --dataset demo
      python -m grcf_ray.train --dataset mosi --print-model
      python -m grcf_ray.train --dataset mosi --data mosi.parquet --set stage1.epochs=5
      python -m grcf_ray.train --dataset demo --ablation no-advantage --out runs/no-advantage

    \b
    Ablations: full, no-advantage, static-margin, no-stage1, no-stage2, direct-mae (MAE alone, no Stage 1).
    """
    from grcf_ray.config import ABLATIONS, build_config, flatten, nearest, parse_assignments, to_yaml
    from grcf_ray.errors import ConfigError
    from grcf_ray.search.space import space_for

    if ablation not in ABLATIONS:
        raise ConfigError(f"unknown ablation {ablation!r}{nearest(ablation, list(ABLATIONS))}; {', '.join(ABLATIONS)}")
    start = flatten(space_for(dataset, space).config())
    asked = ({"model.backbone": backbone} if backbone else {}) | parse_assignments(set_)
    config = build_config({**start, **ABLATIONS[ablation], **asked})
    if print_config:
        print(to_yaml(config), end="")
    elif print_model:
        _print_model(config, dataset, data, label_range)
    else:
        _train(config, dataset, data, label_range, out, threads)


def _print_model(config: RunConfig, dataset: str, data: Path | None, label_range: tuple[float, float] | None) -> None:
    """The table of Table 12. Without data it takes the fact sheet's dims; without weights, shapes alone."""
    import torch

    from grcf_ray.data import datasets
    from grcf_ray.data.store import find_data
    from grcf_ray.model.regression import build_regressor, parameter_table
    from grcf_ray.model.text_encoder import backbone_config, backbone_from_config

    if data is not None:
        info = find_data(dataset, data, label_range).info
        dims = {"audio": info.audio_dim, "vision": info.vision_dim}
    else:
        facts = datasets.get(dataset)
        dims = {"audio": facts.audio_dim, "vision": facts.vision_dim}
    seen = config.model.modalities
    dims = {name: dim if seen == "all" or name in seen else None for name, dim in dims.items()}
    with torch.device("meta"):
        backbone = backbone_from_config(backbone_config(config.model.backbone))
        model = build_regressor(
            backbone, config.model, audio_dim=dims["audio"], vision_dim=dims["vision"], half_range=3.0
        )
    table = parameter_table(model)
    total = sum(count for _, count in table)
    console.print_table(
        ("component", "parameters"),
        [(name, f"{count:,}") for name, count in [*table, ("GRCF (total)", total)]],
    )


def _train(
    config: RunConfig,
    dataset: str,
    data: Path | None,
    label_range: tuple[float, float] | None,
    out: Path,
    threads: int | None,
) -> None:
    import os

    from grcf_ray.config import check_margins
    from grcf_ray.data import datasets
    from grcf_ray.data.store import find_data
    from grcf_ray.errors import ConfigError, faults_message
    from grcf_ray.train.assemble import initial_model, prepare_features, select_modalities
    from grcf_ray.train.checkpoint import load_weights
    from grcf_ray.train.stage import StageLoop, choose_device, stage_seed, use_deterministic_torch

    store = find_data(dataset, data, label_range)
    low, high = store.info.label_range
    if faults := check_margins(config, (high - low) / 2):
        raise ConfigError(faults_message("the settings contradict themselves", faults))
    device = choose_device(config.train, granted=True)
    use_deterministic_torch(threads or os.cpu_count() or 1)
    features = select_modalities(prepare_features(store, config), config.model.modalities)
    protocol = datasets.get(dataset).metrics if dataset in datasets.names() else "mosi"
    _claim(out, config, store.info.fingerprint)
    model = initial_model(config.model, features, seed=config.seed)
    for stage in (1, 2):
        folder = out / f"stage{stage}"
        folder.mkdir(parents=True, exist_ok=True)
        loop = StageLoop(
            model,
            features,
            config,
            stage,
            seed=stage_seed(config.seed, stage),
            protocol=protocol,
            folder=folder,
            device=device,
        )
        if loop.resume():
            console.progress(f"stage {stage}: goes on after epoch {loop.epoch}")
        for metrics in loop:
            console.progress(_line(stage, loop, metrics))
        if loop.epochs:
            # The next stage, and whoever loads the folder, take the epoch that validation likes best.
            name = config.stage2.start if stage == 1 else "best"
            load_weights(folder / f"{name}.safetensors", model)
            best = loop.curve[loop.best_epoch - 1]
            print(f"stage {stage}: best epoch {loop.best_epoch}, " + ", ".join(_figures(best)))
    print(f"checkpoints: {out}")


def _claim(out: Path, config: RunConfig, fingerprint: str) -> None:
    """Keep the configuration beside the checkpoints; ConfigError where they belong to another one."""
    import json

    from grcf_ray.config import flatten
    from grcf_ray.errors import ConfigError, faults_message
    from grcf_ray.files import write_json

    ours = {"data": fingerprint, **flatten(config)}
    path = out / "train.json"
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        changed = [f"{k}: {theirs.get(k)} -> {v}" for k, v in ours.items() if theirs.get(k) != v]
        if changed:
            raise ConfigError(
                faults_message(f"{out} holds checkpoints of other settings:", changed)
                + "\nGive another folder: --out DIR"
            )
    write_json(path, ours)


def _line(stage: int, loop: Any, metrics: dict[str, Any]) -> str:
    left = (loop.epochs - loop.epoch) * metrics["seconds"]
    loss = metrics["loss/total"]
    figures = "  ".join(_figures(metrics))
    return (
        f"stage {stage}  epoch {loop.epoch}/{loop.epochs}  loss {loss:.4f}  {figures}  "
        f"{metrics['utterances_per_s']:.0f} utterances/s  ETA {left:.0f} s"
    )


def _figures(metrics: dict[str, Any]) -> list[str]:
    keys = (("PairwiseAcc", "valid/pairwise_acc"), ("MAE", "valid/mae"), ("Corr", "valid/corr"))
    return [f"{title} {metrics[key]:.4f}" for title, key in keys if metrics.get(key) is not None]


if __name__ == "__main__":
    console.run(app)
