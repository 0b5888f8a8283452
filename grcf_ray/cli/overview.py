"""Command `grcf` without a subcommand: list the commands, and reject unknown ones."""

from __future__ import annotations

from importlib import import_module

from grcf_ray import console
from grcf_ray.cli import COMMANDS

app = console.make_app("Search and train GRCF, a two-stage model for multimodal sentiment analysis")
for _name in COMMANDS:
    app.add_typer(import_module(f"grcf_ray.cli.{_name}").app, name=_name)
