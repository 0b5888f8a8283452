"""Options that several commands share."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from grcf_ray.data.datasets import spelled


class NonFinite(str, enum.Enum):
    """What to do with NaN and infinity in audio and vision."""

    FAIL = "fail"
    ZERO = "zero"


def _column(text: str) -> Any:
    return typer.Option(metavar="NAME", help=text)


Run = Annotated[str, typer.Argument(metavar="RUN", help="Path or URI of the run")]
Dataset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        callback=spelled,
        help="Known data set (see python -m grcf_ray.data list), or a name for your own [default: that of its file]",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(metavar="FILE|DIR", help="Path to the data [default: $GRCF_DATA/NAME, then ./data/NAME]"),
]
MovedData = Annotated[
    Path | None,
    typer.Option(metavar="FILE|DIR", help="Path to the data, if it has moved since the run started"),
]
LabelRange = Annotated[
    tuple[float, float] | None,
    typer.Option(metavar="A B", help="Lowest and highest label of your own data [default: from its labels]"),
]
TextColumn = Annotated[str | None, _column("Column of texts in your own table [default: by its name]")]
LabelColumn = Annotated[str | None, _column("Column of labels in your own table [default: by its name]")]
IdColumn = Annotated[str | None, _column("Column of ids in your own table [default: by its name, else row numbers]")]
SplitColumn = Annotated[
    str | None, _column("Column of train, valid and test [default: by its name, else splits are drawn]")
]
GroupColumn = Annotated[str | None, _column("Column of groups, such as speakers, that drawn splits keep whole")]
Space = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Search space file [default: the shipped space for NAME]")
]
Settings = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Value of a setting; may be repeated")]
Backbone = Annotated[
    str | None,
    typer.Option(metavar="NAME|DIR", help="Text encoder: a Hugging Face name or a folder [default: from the space]"),
]
FitFeatures = Annotated[
    bool,
    typer.Option(
        "--fit-features",
        help="Adapt audio and vision of other widths: cut or pad rows, or score without a missing modality",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON")]


def columns(**names: str | None) -> dict[str, str]:
    """Return the named columns by role."""
    return {role: name for role, name in names.items() if name is not None}
