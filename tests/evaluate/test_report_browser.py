"""The report in a real Chromium: nothing is fetched, the filter and the keyboard work, everything can be read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from evaluate.report import write_report
from tests.evaluate.pages import contrast
from tests.evaluate.runs.test_runner import run

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell", "chrome")

# Every piece of text with its colour, the first ground behind it that is not transparent, its size and weight.
TEXTS = """() => {
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, style")) continue;
    let ground = element;
    while (ground && (numbers(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0) ground = ground.parentElement;
    const ink = numbers(element.closest("svg") ? style.fill : style.color);
    found.push([walker.currentNode.data.trim(), ink, numbers(getComputedStyle(ground).backgroundColor),
      parseFloat(style.fontSize) * (element.closest("svg") ? Math.hypot(element.getCTM().a, element.getCTM().b) : 1)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def chromium():
    """A Chromium: $ROBUSTPATCH_CHROMIUM, one on the PATH, or Playwright's own. Without one these tests are skipped."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no Playwright: pip install 'robustpatch[browser]' to test the report in Chromium"
    )
    with playwright.sync_playwright() as driver:
        places = [os.environ.get("ROBUSTPATCH_CHROMIUM"), *map(shutil.which, NAMES), driver.chromium.executable_path]
        place = next((one for one in places if one and Path(one).exists()), None)
        if place is None:
            pytest.skip("no Chromium: playwright install chromium, or put one on the PATH, or set ROBUSTPATCH_CHROMIUM")
        options = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = driver.chromium.launch(executable_path=place, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run(folder)
    return Path(write_report(folder)).as_uri()


@pytest.fixture
def show(chromium, address):
    """Opens the page, offline; at the end, that it asked for nothing but itself and complained of nothing."""
    complaints, contexts = [], []

    def opened(width=1280, height=800, **options):
        context = chromium.new_context(viewport={"width": width, "height": height}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url[:80]}"))
        page.on("request", lambda r: None if r.url.startswith(("data:", address)) else complaints.append(r.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def shown(page) -> list[str]:
    return page.eval_on_selector_all(".card", "all => all.filter(c => c.checkVisibility()).map(c => c.dataset.outcome)")


def pressed(page) -> list[str]:
    return page.eval_on_selector_all(".filter button[aria-pressed=true]", "all => all.map(b => b.dataset.show)")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(width, scheme, show):
    """All pictures are there, nothing sticks out sideways, and all text has the contrast of WCAG AA."""
    page = show(width, color_scheme=scheme)
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.images.length") > 10
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    texts = page.evaluate(TEXTS)
    assert len(texts) > 100
    for text, ink, ground, size in texts:
        ratio = contrast([c / 255 for c in ink[:3]], [c / 255 for c in ground[:3]])
        assert ratio >= 4.5, (text, ink, ground)
        assert size >= 10, (text, size)
    dark = contrast([c / 255 for c in texts[0][2][:3]], (0, 0, 0)) < 2
    assert dark == (scheme == "dark")


def test_the_filter(show):
    """Each button shows its images alone, says so, and is the one pressed."""
    page = show(390)
    everything = shown(page)
    assert len(set(everything)) > 1
    for kind in (*sorted(set(everything)), "all"):
        page.click(f".filter button[data-show={kind}]")
        wanted = everything if kind == "all" else [one for one in everything if one == kind]
        assert shown(page) == wanted
        assert pressed(page) == [kind]
        assert page.inner_text(".status") == f"{len(wanted)} of {len(everything)} images shown"


def test_the_keyboard(show):
    """Tab reaches the buttons, Enter and space press them, arrows go from image to image and skip hidden ones."""
    page = show()
    kind = page.get_attribute(".filter button:nth-of-type(2)", "data-show")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.show") == kind:
            break
    page.keyboard.press("Enter")
    assert pressed(page) == [kind]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert pressed(page) == ["all"]
    last = page.get_attribute(".filter button:last-of-type", "data-show")
    page.click(f".filter button[data-show={last}]")
    page.focus(f".card[data-outcome={last}]")
    steps = []
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        steps.append(page.evaluate("document.activeElement.getAttribute('aria-labelledby')"))
        assert page.evaluate("document.activeElement.dataset.outcome") == last
    visible = page.eval_on_selector_all(
        f".card[data-outcome={last}]", "all => all.map(c => c.getAttribute('aria-labelledby'))"
    )
    assert steps == [visible[1], visible[0], visible[0]]


def test_without_scripts_and_on_paper(show):
    """Without scripts all images are shown and no button is; on paper no button either, and colours for white."""
    page = show(java_script_enabled=False)
    assert page.locator(".card:visible").count() == page.locator(".card").count() > 0
    assert page.locator("button:visible").count() == 0
    page = show(color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.is_visible(".filter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 29, 33)"
