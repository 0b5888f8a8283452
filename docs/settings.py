"""Write the tables of docs/settings.md from the settings' dataclasses: `python docs/settings.py`."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

from grcf_ray.config import described_settings

PAGE = Path(__file__).with_suffix(".md")
MARK = "<!-- The rest is written by docs/settings.py. -->\n"


def tables() -> str:
    """Return a Markdown table for each section of the settings."""
    lines = []
    for section, settings in groupby(described_settings(), key=lambda setting: setting.path.rpartition(".")[0]):
        lines += ["", f"## `{section}`" if section else "## Top level", ""]
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        for setting in settings:
            default = "-" if setting.default is None else f"`{json.dumps(setting.default)}`"
            lines.append(f"| `{setting.path}` | {setting.type} | {default} | {setting.meaning} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the page with its tables written anew."""
    return PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + tables()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
