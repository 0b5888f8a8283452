"""Headless Chromium, for the tests marked page."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

__all__ = ["browser", "chromium", "severe", "text_of"]

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_SCRIPT_S = 300
"""For a script of the tests, in seconds: all figures of a page are drawn in some."""


@contextlib.contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Chrome]:
    """A browser that has never been used, which keeps its things in a folder; without one the test is skipped."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.skip(f"{' and '.join(missing)} not installed")
    options = ChromeOptions()
    options.binary_location = found["chromium"] or ""
    for flag in (*_FLAGS, f"--user-data-dir={folder}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(found["chromedriver"]))
    driver.set_script_timeout(_SCRIPT_S)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def shared_chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser for the tests of a file, because its start takes longer than most of them."""
    with chromium(tmp_path_factory.mktemp("browser"), "--window-size=1280,900") as driver:
        yield driver


@pytest.fixture
def browser(shared_chromium: Chrome) -> Iterator[Chrome]:
    """A new tab, 1280 by 900, in the light theme; pages from the disk have stored nothing before."""
    driver = shared_chromium
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    yield driver
    driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": "file://", "storageTypes": "all"})
    # What it has complained of is not the next test's.
    driver.get_log("browser")
    driver.close()
    driver.switch_to.window(first)


def text_of(driver: Chrome) -> str:
    """What the page shows by now, which is nothing before it has a body."""
    return str(driver.execute_script("return document.body ? document.body.innerText : ''"))


def severe(driver: Chrome) -> list[str]:
    """What the browser has complained of: errors of scripts, and whatever a policy refused."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
