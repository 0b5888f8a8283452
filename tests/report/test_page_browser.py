"""The page as people meet it: opened from the disk in Chromium, which has no network to ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import severe
from report.stored import record_of
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from synthetic_run import HOSTILE, Run

from grcf_ray.console import printable
from grcf_ray.report.page import write_report

pytestmark = pytest.mark.page

DRAWN = """
const done = arguments[arguments.length - 1];
report.drawAll().then(() => done(null), (fault) => done(String(fault)));
"""
MARKS = """
return [...document.querySelectorAll(".plot:not([data-drawn=false])")].map((plot) => [
  plot.dataset.plot,
  plot.querySelectorAll("svg.main-svg").length,
  plot.querySelectorAll(".point, .points path, .js-line, .bars path, .hm image, canvas").length,
]);
"""
WITHOUT_WEBGL = """
const real = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
  return kind.includes("webgl") ? null : real.call(this, kind, ...more);
};
"""
SLOWLY = """
const drawn = Plotly.newPlot;
Plotly.newPlot = (...figure) => new Promise((done) => setTimeout(done, 300)).then(() => drawn(...figure));
"""
COLOURS = """
const style = getComputedStyle(document.body);
const plot = document.querySelector(".plot[data-drawn] svg.main-svg");
return [style.backgroundColor, style.color, plot ? getComputedStyle(plot).backgroundColor : null];
"""
PHONE = 360
"""Width of its screen."""
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 17, 17)"}
TEXTS = """
const found = [];
for (const element of document.querySelectorAll("main *:not(script):not(.plot *)")) {
  const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!text || !element.checkVisibility()) continue;
  let behind = element;
  while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const style = getComputedStyle(element);
  found.push([element.tagName, style.color, getComputedStyle(behind || document.documentElement).backgroundColor]);
}
return [...new Set(found.map((entry) => JSON.stringify(entry)))].map((entry) => JSON.parse(entry));
"""


def opened(browser: Chrome, page: Path, *, theme: str = "light", width: int = 1280) -> None:
    """Open the page on a screen of that width, for somebody who prefers that theme."""
    scheme = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    arrive(browser, page, lambda: browser.get(page.as_uri()))


def arrive(browser: Chrome, page: Path, go: Callable[[], None]) -> None:
    """Wait for the page that a step leads to: chromedriver now and then takes the one before it for that."""
    browser.execute_script("window.left = true;")
    go()
    loaded = "return [location.href, document.readyState, !window.left]"
    WebDriverWait(browser, 30).until(lambda _: browser.execute_script(loaded) == [page.as_uri(), "complete", True])


def page_of(folder: Path) -> Path:
    page = write_report(record_of(folder)).local
    assert page is not None
    return page


def rows(browser: Chrome, stage: int) -> list[list[str]]:
    """The cells that the table of a stage's trials shows."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map((row) => [...row.cells].map((c) => c.textContent))"
    )
    cells: list[list[str]] = browser.execute_script(script, f"#trials-stage{stage} tbody tr")
    return cells


def focused(browser: Chrome) -> WebElement:
    return browser.switch_to.active_element


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours, as WCAG has it."""

    def luminance(colour: str) -> float:
        parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with a trial of every kind, and its page."""
    run = Run(tmp_path_factory.mktemp("finished") / "run").start()
    page_of(run.trials(1, "cpcpdfccpccp").trials(2, "cpccp").finish().folder)
    return run


def test_every_figure_is_drawn_from_the_disk_alone(browser: Chrome, written: Path) -> None:
    opened(browser, written)
    assert browser.execute_async_script(DRAWN) is None
    plots = json.loads(written.with_name("report.json").read_text(encoding="utf-8"))["plots"]
    marks = {name: (drawings, points) for name, drawings, points in browser.execute_script(MARKS)}
    # Chromium may be without WebGL here.
    assert marks.keys() | {name for name in plots if name.startswith("parallel-")} == plots.keys()
    for name, (drawings, points) in marks.items():
        assert drawings and points, name
    assert severe(browser) == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_without_webgl_parallel_axes_are_a_table(browser: Chrome, finished: Run) -> None:
    opened(browser, finished.folder / "report.html")
    browser.execute_script(WITHOUT_WEBGL)
    assert browser.execute_async_script(DRAWN) is None
    figure = browser.find_element(By.ID, "parallel-stage1")
    assert "WebGL" in figure.find_element(By.CSS_SELECTOR, ".plot").text
    heads = [cell.text for cell in figure.find_elements(By.CSS_SELECTOR, "details[open] th[scope=col]")]
    assert {"objective", "stage1.head_lr", "stage1.encoder_lr", "model.modalities"} <= set(heads)
    browser.find_element(By.ID, "theme").click()
    assert severe(browser) == []


def test_figures_are_drawn_as_they_come_into_view(browser: Chrome, finished: Run) -> None:
    opened(browser, finished.folder / "report.html")
    last = browser.find_elements(By.CSS_SELECTOR, ".plot")[-1]
    assert last.get_attribute("data-drawn") is None
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant'})", last)
    WebDriverWait(browser, 20).until(lambda _: last.find_elements(By.CSS_SELECTOR, "svg.main-svg"))
    assert severe(browser) == []


def test_printing_draws_every_figure(browser: Chrome, finished: Run) -> None:
    opened(browser, finished.folder / "report.html", theme="dark")
    assert browser.find_element(By.ID, "theme").get_attribute("aria-pressed") == "true"
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    every = browser.find_elements(By.CSS_SELECTOR, ".plot")
    WebDriverWait(browser, 30).until(lambda _: all(plot.get_attribute("data-drawn") for plot in every))
    WebDriverWait(browser, 30).until(lambda _: browser.execute_script(COLOURS)[0] == PAPER["light"])
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(COLOURS)[0] == PAPER["dark"]


def test_paper_that_does_not_wait_is_light_and_leaves_the_page_dark(browser: Chrome, finished: Run) -> None:
    """Whoever asks for a figure that is being drawn waits for it."""
    opened(browser, finished.folder / "report.html", theme="dark")
    script = f"""
    {SLOWLY}
    dispatchEvent(new Event('beforeprint'));
    const paper = getComputedStyle(document.body).backgroundColor;
    dispatchEvent(new Event('afterprint'));
    const done = arguments[arguments.length - 1];
    report.drawAll().then(() => setTimeout(() => {{
      const plots = [...document.querySelectorAll(".plot")];
      const colours = plots.map((plot) => plot.dataset.drawn === "true" && plot._fullLayout.paper_bgcolor);
      const missing = plots.filter((plot) => !plot.dataset.drawn).length;
      done([paper, getComputedStyle(document.body).backgroundColor, missing, ...new Set(colours.filter(Boolean))]);
    }}, 500));
    """
    paper, page, missing, *figures = browser.execute_async_script(script)
    assert (paper, page, missing) == (PAPER["light"], PAPER["dark"], 0)
    assert figures == ["#111111"]


def test_a_figure_that_cannot_be_drawn_leaves_the_others(browser: Chrome, finished: Run) -> None:
    """It is told, and drawn when it is asked for again."""
    opened(browser, finished.folder / "report.html")
    script = """
    const drawn = Plotly.newPlot;
    const failing = [...document.querySelectorAll(".plot")].at(-1);
    Plotly.newPlot = (plot, ...figure) => plot === failing ? Promise.reject(new Error("odd")) : drawn(plot, ...figure);
    const done = arguments[arguments.length - 1];
    report.drawAll().then(() => done(null), (fault) => { Plotly.newPlot = drawn; done(fault.message); });
    """
    assert browser.execute_async_script(script) == "odd"
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_async_script(DRAWN) is None
    every = browser.find_elements(By.CSS_SELECTOR, ".plot")
    assert all(plot.get_attribute("data-drawn") for plot in every)
    assert "odd" in severe(browser)[0]


def test_numbers_on_the_page_are_the_records(browser: Chrome, written: Path, stored_run: Path) -> None:
    opened(browser, written)
    metrics = json.loads((stored_run / "best" / "metrics.json").read_text())
    cards = browser.find_elements(By.CSS_SELECTOR, ".cards data")
    expected = [metrics["test"]["mae"], metrics["valid"]["mae"], metrics["baselines"][0]["test"]["mae"]]
    assert [card.text for card in cards] == [f"{value:.4f}" for value in expected]
    assert [float(card.get_attribute("title") or "") for card in cards] == expected
    record = record_of(stored_run)
    for stage in (1, 2):
        trials = record.trials(stage)
        shown = rows(browser, stage)
        assert [int(row[0]) for row in shown] == [trial.number for trial in trials]
        assert [row[2] for row in shown] == [f"{trial.objective:.4f}" for trial in trials]
        titles = "return [...document.querySelectorAll(arguments[0])].map((cell) => Number(cell.title))"
        cells = browser.execute_script(titles, f"#trials-stage{stage} tbody tr td:nth-child(3)")
        assert cells == [trial.objective for trial in trials]


def test_page_and_figures_wear_the_chosen_theme_which_is_remembered(browser: Chrome, finished: Run) -> None:
    page = finished.folder / "report.html"

    def check(theme: str) -> None:
        """The theme of page and figures; text has the contrast that AA asks for."""
        colour = PAPER[theme]
        WebDriverWait(browser, 20).until(lambda _: browser.execute_script(COLOURS)[2] == colour)
        page_colour, ink, _ = browser.execute_script(COLOURS)
        assert page_colour == colour
        assert contrast(page_colour, ink) > 12
        button = browser.find_element(By.ID, "theme")
        assert button.get_attribute("aria-pressed") == str(theme == "dark").lower()
        browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        texts = browser.execute_script(TEXTS)
        assert {"P", "TH", "TD", "H2", "CODE", "SUMMARY"} <= {tag for tag, _, _ in texts}
        low = [(tag, round(contrast(ink, paper), 2)) for tag, ink, paper in texts if contrast(ink, paper) < 4.5]
        assert low == []

    opened(browser, page)
    assert browser.execute_async_script(DRAWN) is None
    check("light")
    browser.find_element(By.ID, "theme").click()
    check("dark")
    arrive(browser, page, browser.refresh)
    assert browser.execute_script(COLOURS)[0] == PAPER["dark"]
    # In either theme, the choice outranks what the system prefers.
    opened(browser, page, theme="dark")
    browser.find_element(By.ID, "theme").click()
    arrive(browser, page, browser.refresh)
    assert browser.execute_script(COLOURS)[0] == PAPER["light"]
    assert severe(browser) == []


def check_phone(browser: Chrome) -> None:
    """Hold that a page on a phone, with all of its figures, scrolls down only."""
    browser.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert browser.execute_async_script(DRAWN) is None
    assert browser.execute_script("return innerWidth") == PHONE
    assert browser.execute_script("return document.documentElement.scrollWidth") <= PHONE
    script = """
    return [...document.querySelectorAll("main *:not(.scroll *):not(.plot *):not(script):not(.unseen)")]
      .filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 80));
    """
    assert browser.execute_script(script) == []


def test_a_phone_scrolls_down_only(browser: Chrome, finished: Run) -> None:
    opened(browser, finished.folder / "report.html", width=PHONE)
    check_phone(browser)


def test_the_keyboard_reaches_everything(browser: Chrome, finished: Run) -> None:
    opened(browser, finished.folder / "report.html")

    def press(*keys: str) -> WebElement:
        ActionChains(browser).send_keys(*keys).perform()
        return focused(browser)

    skip = press(Keys.TAB)
    assert skip.text == "Skip to the answer"
    assert skip.rect["x"] >= 0
    assert press(Keys.TAB).get_attribute("id") == "theme"
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    press(Keys.ENTER)
    assert browser.execute_script("return document.documentElement.dataset.theme") == "dark"
    for _ in range(300):
        head = press(Keys.TAB)
        if head.tag_name == "button" and head.text.startswith("PairwiseAcc"):
            break
    else:
        pytest.fail("the column's button is not reached")
    objectives = [trial.objective for trial in finished.record.trials(1)]
    known = sorted(f"{value:.4f}" for value in objectives if value is not None)
    missing = ["–"] * sum(value is None for value in objectives)
    press(Keys.ENTER)
    assert [row[2] for row in rows(browser, 1)] == [*known, *missing]
    column = head.find_element(By.XPATH, "./ancestor::th")
    assert column.get_attribute("aria-sort") == "ascending"
    press(Keys.SPACE)
    assert [row[2] for row in rows(browser, 1)] == [*known[::-1], *missing]
    assert column.get_attribute("aria-sort") == "descending"
    assert focused(browser) == head


def test_rows_are_filtered_by_words(browser: Chrome, finished: Run) -> None:
    opened(browser, finished.folder / "report.html")
    field = browser.find_element(By.CSS_SELECTOR, "#trials-stage1 input")
    status = browser.find_element(By.CSS_SELECTOR, "#trials-stage1 output")
    assert status.text == "12 of 12 trials shown"
    field.send_keys("Pruned")
    assert {row[1] for row in rows(browser, 1)} == {"pruned"}
    assert status.text == "4 of 12 trials shown"
    field.send_keys(" nothing-like-it")
    assert rows(browser, 1) == []
    assert status.text == "0 of 12 trials shown"


def test_many_trials_are_shown_when_they_are_asked_for(browser: Chrome, tmp_path: Path) -> None:
    run = Run(tmp_path / "run").start().trials(1, "cp" * 75, epochs=1)
    opened(browser, page_of(run.folder))
    assert len(rows(browser, 1)) == 100
    button = browser.find_element(By.CSS_SELECTOR, "#trials-stage1 button.all")
    assert button.text == "Show all 150"
    button.send_keys(Keys.ENTER)
    assert len(rows(browser, 1)) == 150
    assert not button.is_displayed()
    # Numbers are in the order of numbers.
    browser.find_element(By.CSS_SELECTOR, "#trials-stage1 th button").send_keys(Keys.ENTER)
    assert [int(row[0]) for row in rows(browser, 1)] == list(range(150))


def test_strings_of_the_data_do_nothing(browser: Chrome, tmp_path: Path) -> None:
    """On a phone, which they do not widen."""
    run = Run(tmp_path / "run", text=HOSTILE).start().trials(1, "cpcpdfccp").trials(2, "cpc").finish()
    opened(browser, page_of(run.folder), width=PHONE)
    browser.execute_script("window.alerted = 0; window.alert = () => { window.alerted += 1; };")
    check_phone(browser)
    for column in range(1, 9):
        browser.find_element(By.CSS_SELECTOR, f"#trials-stage1 th:nth-child({column}) button").send_keys(Keys.ENTER)
    assert browser.execute_script("return window.alerted") == 0
    for selector in ("img", "iframe", "object", "style:not(head style)", "main script:not([type])"):
        assert [
            element.get_attribute("outerHTML") for element in browser.find_elements(By.CSS_SELECTOR, selector)
        ] == []
    assert any(HOSTILE in row for row in rows(browser, 1))
    assert printable(HOSTILE) in browser.find_element(By.ID, "section-failures").get_attribute("textContent")
    assert severe(browser) == []


def test_a_running_search_and_an_empty_one_open_without_errors(browser: Chrome, tmp_path: Path) -> None:
    for name, trials in (("running", "cpr"), ("empty", "")):
        run = Run(tmp_path / name).start().trials(1, trials)
        opened(browser, page_of(run.folder))
        assert browser.execute_async_script(DRAWN) is None
        progress: Any = browser.find_element(By.TAG_NAME, "progress")
        assert progress.get_property("value") == len(trials.replace("r", ""))
        assert severe(browser) == []
