"""The report in a real headless Chromium, opened from disk. Skipped, with the reason, where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages import report
from tests.report.example import write_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install .[dev])")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("run")
    write_run(root, 24, size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report.main()
    return Path(root / "data/report/report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1600, 1280, 390])
def test_it_opens_alone_without_errors_and_fits(browser: Any, address: str, scheme: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto(address)
    assert [url for url in requests if not url.startswith("data:")] == [address]
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing hangs over the edge
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    red, green, blue = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    )
    assert (red + green + blue > 600) == (scheme == "light")
    page.close()


def test_the_slider_moves_by_keyboard_and_takes_the_face_that_is_clicked(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.focus(".slider input")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('.slider').style.getPropertyValue('--at')").strip() == "60%"
    face = page.locator(".strip[data-face]").nth(3)
    face.locator("img").first.click()
    assert page.input_value("[data-choice=face]") == face.get_attribute("data-face")
    assert page.get_attribute(".slider .before", "src") == face.locator("img").first.get_attribute("src")
    for slider in page.locator(".slider").all():  # each restorer shows its own; somebody's results have no ReFL
        restorer = slider.get_attribute("data-restorer")
        own = face.locator(f"img[data-model='{restorer}/{'base' if restorer == 'codeformer' else 'full'}']")
        assert slider.locator(".after").get_attribute("src") == own.get_attribute("src")
        assert slider.locator(".tag.right").inner_text() == ("result" if restorer == "codeformer" else "ReFL")
    page.select_option("[data-choice=after]", "hq")
    assert page.get_attribute(".slider .after", "src") == face.locator("img").last.get_attribute("src")
    assert page.locator(".tag.right").first.inner_text() == "HQ"
    page.select_option("[data-choice=face]", index=21)  # without a pointer: the second of the worst
    worst = page.locator(".strip[data-face]").nth(21)
    assert page.get_attribute(".slider .after", "src") == worst.locator("img").last.get_attribute("src")
    page.close()


def test_what_scrolls_can_be_reached_by_keyboard(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(address)
    stuck = page.evaluate(
        """[...document.querySelectorAll('main *')].filter(one => one.scrollWidth > one.clientWidth + 1
            && ['auto', 'scroll'].includes(getComputedStyle(one).overflowX) && one.tabIndex < 0)
            .map(one => one.className)"""
    )
    assert stuck == []
    page.close()


def test_printed_it_hides_what_needs_a_pointer_and_stays_light(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 794, "height": 1123}, color_scheme="dark")
    page.goto(address)
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.is_visible(".compare")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")  # emulation does not send it
    assert page.is_visible("details.comparison table")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.is_visible("details.comparison table")
    assert not page.is_visible(".top")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.querySelector('.scores').getBoundingClientRect().right") <= 794
    page.close()
