"""The page in a browser without a window: it is clicked through, and must neither complain nor ask the network."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

selenium = pytest.importorskip("selenium", reason="drives the browser: pip install 'medi3d[dev]'")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

_PATIENCE_S = 90
"""Software rendering on a busy machine is slow; a page that is well takes two seconds."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of the system's; nothing is downloaded."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its driver here; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900",
        "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture
def opened(browser: Any, report_file: Path) -> Any:
    browser.get(report_file.as_uri())
    return browser


def until(browser: Any, script: str) -> None:
    """Wait until a script returns something true."""
    end = time.monotonic() + _PATIENCE_S
    while not browser.execute_script(f"return {script}"):
        assert time.monotonic() < end, f"{script} did not come true; {browser.get_log('browser')}"
        time.sleep(0.1)


def shown(name: str) -> str:
    return f"document.getElementById('viewer').dataset.shown === '{name}'"


def choose(browser: Any, identifier: str, value: str) -> None:
    Select(browser.find_element(By.ID, identifier)).select_by_value(value)


def column(browser: Any, number: int) -> list[str]:
    script = (
        "return [...document.querySelectorAll('table.sortable tbody tr')].filter((row) => !row.hidden)"
        f".map((row) => row.cells[{number}].textContent)"
    )
    found: list[str] = browser.execute_script(script)
    return found


def complaints(browser: Any) -> list[str]:
    """Return what the console says, and what was asked of a network since the last look."""
    said = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    # WebGL warns of its own slowness where a picture is read back from software rendering
    said = [text for text in said if "GPU stall due to ReadPixels" not in text]
    return said + [url[:80] for url in asked if not url.startswith(("data:", "blob:", "file:"))]


def test_a_click_through_leaves_no_complaint(opened: Any) -> None:
    page = opened
    # sort, by mouse and by key
    assert column(page, 0) == ["case_0", "case_2", "case_1"]
    heads = page.find_elements(By.CSS_SELECTOR, "table.sortable th button")
    assert heads[2].text.startswith("Dice")
    heads[2].click()
    assert column(page, 2) == ["0.250", "0.500", "0.900"]
    heads[2].send_keys(Keys.ENTER)
    assert column(page, 2) == ["0.900", "0.500", "0.250"]
    assert page.find_elements(By.CSS_SELECTOR, "th")[2].get_attribute("aria-sort") is None  # of the first table
    heads[3].click()
    assert column(page, 3)[-1] == "–", "undefined values come last"
    choose(page, page.execute_script("return document.querySelector('[data-filters]').id = 'filter'"), "")
    assert len(column(page, 0)) == 6
    # the viewer: its first case, another one, another layer, other slices
    page.execute_script("document.getElementById('viewer').scrollIntoView()")
    until(page, shown("case_0/prediction"))
    page.find_elements(By.CSS_SELECTOR, "[data-view]")[2].click()
    until(page, shown("case_1/prediction"))
    for layer in ("reference", "differences", "none"):
        choose(page, "viewer-layer", layer)
        until(page, shown(f"case_1/{layer}"))
    legends = page.find_elements(By.CSS_SELECTOR, "[data-legend]")
    assert not any(legend.is_displayed() for legend in legends)
    canvas, slider = (page.find_element(By.ID, f"viewer-{name}") for name in ("planes", "z"))
    before, picture = float(slider.get_attribute("value")), canvas.screenshot_as_png
    slider.send_keys(Keys.ARROW_RIGHT * 60)
    assert float(slider.get_attribute("value")) == pytest.approx(min(before + 0.3, 1), abs=0.011)
    time.sleep(0.3)
    assert canvas.screenshot_as_png != picture
    assert complaints(page) == []


def test_on_paper_pictures_take_the_place_of_what_moves(opened: Any) -> None:
    page = opened
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        for selector in ("#viewer", "nav", "[data-view]", "details", "[data-filters]"):
            assert not page.find_element(By.CSS_SELECTOR, selector).is_displayed(), selector
        assert all(image.is_displayed() for image in page.find_elements(By.CSS_SELECTOR, ".picture img"))
        rows = page.find_elements(By.CSS_SELECTOR, "table.sortable tbody tr")
        assert len(rows) == 6
        assert all(row.is_displayed() for row in rows), "rows that a filter hides on the screen"
        assert page.execute_cdp_cmd("Page.printToPDF", {})["data"]
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert complaints(page) == []


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_light_and_dark_follow_the_reader(opened: Any, scheme: str, is_dark: bool) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    colour = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
    red = int(colour.removeprefix("rgb(").split(",")[0])
    assert (red < 60) is is_dark
    assert not opened.execute_script("return document.documentElement.scrollWidth > innerWidth"), (
        "wider than the window"
    )


def test_complaints_are_seen(browser: Any, tmp_path: Path) -> None:
    """The check itself: a page that asks the network and throws does not pass it."""
    broken = tmp_path / "broken.html"
    broken.write_text("<!doctype html><img src='http://127.0.0.1:9/a.png'><script>throw new Error('ouch')</script>")
    browser.get(broken.as_uri())
    time.sleep(0.5)
    found = complaints(browser)
    assert any("ouch" in text for text in found)
    assert any(text.startswith("http://127.0.0.1:9") for text in found)
