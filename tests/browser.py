"""A fixture of its own file: headless Chromium, for the tests marked page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

__all__ = ["FLAGS", "browser", "severe"]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    """A browser that has never been used, 1280 by 900, in the light theme."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.skip(f"{' and '.join(missing)} not installed")
    options = ChromeOptions()
    options.binary_location = found["chromium"] or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(found["chromedriver"]))
    yield driver
    driver.quit()


def severe(driver: Chrome) -> list[str]:
    """What the browser has complained of: errors of scripts, and whatever a policy refused."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
