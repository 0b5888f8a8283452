"""Command `models`: list the models that `model.name` chooses, and show one with its options."""

from __future__ import annotations

from typing import Any

import typer

from grcf_ray import console
from grcf_ray.cli import options
from grcf_ray.data.datasets import spelled

app = console.make_app("List the models, and show one with its options and search space")

_Dataset = typer.Option(
    "mosi",
    metavar="NAME",
    callback=spelled,
    help="Known data set whose task and row widths the parameters are counted for",
)


@app.command("list")
def list_(dataset: str = _Dataset, json: options.Json = False) -> None:
    """Print each model with its paper, year, modalities, tasks and number of parameters.

    \b
    Examples:
      python -m grcf_ray.models list
      python -m grcf_ray.models list --dataset mustard --json
    """
    from grcf_ray.data import datasets
    from grcf_ray.plugins import model_names

    facts = datasets.get(dataset)
    cards = [_described(name, facts) for name in model_names()]
    if json:
        console.print_json(cards)
        return
    console.print_table(
        ("name", "paper", "year", "modalities", "tasks", "parameters"),
        [
            (
                card["name"],
                card["paper"],
                card["year"],
                ", ".join(card["modalities"]),
                ", ".join(card["tasks"]),
                "-" if card["parameters"] is None else f"{card['parameters']:,}",
            )
            for card in cards
        ],
    )
    console.say(f"Parameters: for {facts.name}, without the {facts.default_backbone} text encoder")


@app.command()
def show(
    name: str = typer.Argument(metavar="MODEL", help="Name of a model, as `list` prints it"),
    dataset: str = _Dataset,
    json: options.Json = False,
) -> None:
    """Print a model's card, its options with their defaults, and the entries of its search space.

    \b
    Examples:
      python -m grcf_ray.models show lmf
    """
    from grcf_ray.config import field_docstrings, model_options, nearest
    from grcf_ray.data import datasets
    from grcf_ray.errors import ConfigError
    from grcf_ray.model.card import card_of, search_entries
    from grcf_ray.plugins import model_names

    if name not in model_names():
        raise ConfigError(f"{name}: no such model{nearest(name, model_names())} (accepted: {', '.join(model_names())})")
    card = _described(name, datasets.get(dataset))
    meanings = field_docstrings(card_of(name).options)
    own = [
        {"path": path, "default": value, "meaning": meanings[path.partition(".")[2]]}
        for path, value in model_options(name).items()
    ]
    space = search_entries(name)
    if json:
        console.print_json({**card, "options": own, "search": space})
        return
    for key, value in card.items():
        if value not in (None, ""):
            shown = ", ".join(value) if isinstance(value, list) else f"{value:,}" if key == "parameters" else value
            console.say(f"{key.replace('_', ' ')}: {shown}")
    if own:
        console.say()
        console.print_table(("option", "default", "meaning"), [tuple(option.values()) for option in own])
        console.say("\nSearch space (stage1, or stage2 of a search without Stage 1):")
        for path, entry in space.items():
            console.say(f"  {path}: {{{', '.join(f'{key}: {_yaml(value)}' for key, value in entry.items())}}}")


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _described(name: str, facts: Any) -> dict[str, Any]:
    """Return the card of a model as plain values, with its parameters outside the text encoder."""
    import torch

    from grcf_ray.config import build_config
    from grcf_ray.model.build import described_model, parameter_table
    from grcf_ray.model.card import card_of

    card, parameters = card_of(name), None
    if facts.task in card.networks:
        config = build_config({"model.name": name, "model.backbone": facts.default_backbone})
        with torch.device("meta"):
            table = parameter_table(described_model(config, facts))
        parameters = sum(count for title, count in table if title != "Text Encoder")
    return {
        "name": name,
        "title": card.title,
        "paper": card.paper,
        "year": card.year,
        "venue": card.venue,
        "modalities": list(card.modalities),
        "needs_text": card.needs_text,
        "tasks": list(card.networks),
        "parameters": parameters,
        "published_parameters": card.published,
        "equations_from": card.source,
    }
