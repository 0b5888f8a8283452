"""HTML from Jinja2 templates. Every string is escaped, and its control codes are made visible."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import cached_property

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from grcf_ray.console import duration, printable
from grcf_ray.search.schema import Estimate

_NUMBER = re.compile(r"<data|–")


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a page: the first cell of a row is its heading; columns of numbers are aligned to the right.

    Floats are shown with four digits, strings as they are.
    """

    caption: str
    columns: Sequence[object]
    rows: Sequence[Sequence[object]]
    hidden_caption: bool = False
    """Whether only screen readers get the caption, because a heading above says the same."""

    @cached_property
    def numeric(self) -> list[bool]:
        """Whether each column holds only numbers. ValueError for rows of different lengths."""
        columns = list(zip(self.columns, *self.rows, strict=True))
        return [len(column) > 1 and all(map(_is_number, column[1:])) for column in columns]


def render(template: str, **context: object) -> str:
    """Return a page made of a template in `templates/`."""
    return _ENVIRONMENT.get_template(template).render(context)


def template_source(name: str) -> Markup:
    """Return a style sheet or a script of `templates/` as it stands."""
    source, _, _ = _LOADER.get_source(_ENVIRONMENT, name)
    return Markup(source)


def figure(value: object, spec: str = ".4f") -> object:
    """Return a float with all its digits in the title; a dash for None; anything else unchanged."""
    if value is None:
        return Markup("–")
    if not isinstance(value, float):
        return value
    return Markup('<data value="{0}" title="{0}">{1}</data>').format(repr(value), format(value, spec))


def spread(estimate: Estimate | None) -> object:
    """Return mean and deviation of an estimate."""
    if estimate is None or estimate.deviation is None:
        return figure(None if estimate is None else estimate.mean)
    return Markup("{} ± {}").format(figure(estimate.mean), figure(estimate.deviation))


def interval(estimate: Estimate | None) -> object:
    """Return the signed mean of an estimate with its 95 % interval."""
    if estimate is None or estimate.bounds is None:
        return figure(None)
    return Markup("{} [{}, {}]").format(*(figure(value, "+.4f") for value in (estimate.mean, *estimate.bounds)))


def seconds(value: float) -> object:
    """Return a time, with its seconds in the title."""
    return Markup('<data value="{0}" title="{0} s">{1}</data>').format(repr(value), duration(value))


def code(text: object) -> object:
    """Return a text as code."""
    return Markup("<code>{}</code>").format(printable(str(text)))


def capitalised(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _is_number(cell: object) -> bool:
    if isinstance(cell, Markup):
        return bool(_NUMBER.match(cell))
    return cell is None or (isinstance(cell, (int, float)) and not isinstance(cell, bool))


def _cell(value: object) -> object:
    return figure(value, ".4g")


def _finalize(value: object) -> object:
    # A browser obeys overrides of the text direction, as a terminal does.
    return value if isinstance(value, Markup) else "" if value is None else printable(str(value))


_LOADER = PackageLoader("grcf_ray.report")
_ENVIRONMENT = Environment(
    loader=_LOADER,
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_finalize,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"capitalised": capitalised, "cell": _cell, "duration": duration, "figure": figure}
# JSON has no NaN.
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
