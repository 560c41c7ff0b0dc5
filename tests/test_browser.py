"""The page in a real browser: Chromium, without a network.

pytest tests/test_browser.py                                 # English: the bundled embedder knows no more
XVLM2VEC_STUDENT=./xvlm2vec pytest tests/test_browser.py     # after `make demo`: its student, five languages
XVLM2VEC_STUDENT=./xvlm2vec XVLM2VEC_SCREENSHOT=docs/search.png pytest tests/test_browser.py -k screenshot
"""

import base64
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import image_page
import pytest

from mmmeb_tasks.mini.scenes import Scene, draw
from mmmeb_tasks.mini.world import LANGUAGES

for package in ("gradio", "lancedb", "playwright"):
    pytest.importorskip(package)
from playwright.sync_api import expect, sync_playwright  # noqa: E402

from recipes.image_search.page import EXAMPLES, FAILED  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH"),
    pytest.mark.filterwarnings(image_page.PANDAS),
]

STUDENT = os.environ.get("XVLM2VEC_STUDENT")
NEEDS_STUDENT = pytest.mark.skipif(not STUDENT, reason="the bundled embedder knows English; see XVLM2VEC_STUDENT above")
SCREENSHOT = os.environ.get("XVLM2VEC_SCREENSHOT")
SINGLES = sorted({*range(0, 150, 5), *(image_page.concept(text, code) for code, _, text in EXAMPLES)})
VIOLIN = image_page.concept("violin")
LOADS = 60_000  # milliseconds, on a machine that does much else


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    index = image_page.make_index(tmp_path_factory.mktemp("indexed"), sorted({*SINGLES, VIOLIN}))
    with image_page.served(index, [None, STUDENT] if STUDENT else [None]) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # Chromium's sandbox does not start for root, as which containers run.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    """The open page; a request to another host, a dialog or an error of its scripts fails the test."""
    asked, faults = [], []
    page = browser.new_page()
    page.set_default_timeout(LOADS)
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(address)
    query_box(page).wait_for()
    yield page
    page.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(address).netloc} and len(asked) > 5
    assert not faults


def query_box(page):
    return page.get_by_label("Query, in any language")


def status(page):
    """The region that a screen reader reads out; gradio has one of its own, for its events."""
    return page.locator(".gradio-container main").get_by_role("status")


def first_image(page, model=-1):
    """The file of the first result: of the last model, which is the student if there is one."""
    return page.locator(".results").nth(model).get_by_role("listitem").first.get_by_role("img")


def ask(page, text):
    query_box(page).click()
    page.keyboard.press("Control+A")
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    expect(status(page)).to_contain_text(f"“{text}”", timeout=LOADS)


@pytest.mark.parametrize("language", ["en", *(pytest.param(code, marks=NEEDS_STUDENT) for code in LANGUAGES[1:])])
def test_a_typed_query_finds_its_image_first(page, language):
    own = image_page.concept(next(text for code, _, text in EXAMPLES if code == language), language)
    for number in dict.fromkeys([own, *SINGLES[::12]]):
        ask(page, image_page.WORLD.name(number, language))
        expect(first_image(page)).to_have_attribute("alt", image_page.file_of(number))


def test_an_example_searches_and_says_its_language(page):
    for code, language, text in EXAMPLES:
        button = page.get_by_role("button", name=f"{text} {language}", exact=True)
        button.click()
        expect(status(page)).to_contain_text(f"“{text}”", timeout=LOADS)
        expect(query_box(page)).to_have_value(text)
        assert button.locator("b").get_attribute("lang") == code


def drop(page, data, name="dropped.png"):
    """Drop a file as the system's file manager does."""
    files = page.evaluate_handle(
        """([content, name]) => {
            const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], name, {type: "image/png"}));
            return files;
        }""",
        [base64.b64encode(data).decode(), name],
    )
    page.get_by_role("button", name="Drop an image file here to upload").dispatch_event("drop", {"dataTransfer": files})


def test_a_dropped_image_is_found_first(page, tmp_path):
    number = SINGLES[4]
    draw(Scene(number, seed=number), image_page.WORLD).save(tmp_path / "dropped.png")
    drop(page, (tmp_path / "dropped.png").read_bytes())
    expect(status(page)).to_contain_text("images for the image.", timeout=LOADS)
    expect(first_image(page, 0)).to_have_attribute("alt", image_page.file_of(number))
    ask(page, "dog")
    expect(status(page)).to_contain_text("“dog” and the image.")
    page.get_by_role("button", name="Remove Image").click()
    ask(page, "cat")
    expect(status(page)).to_contain_text("“cat”. Best")


def test_a_file_that_is_not_an_image_gets_its_line(page):
    ask(page, "dog")
    drop(page, b"not an image")
    expect(status(page)).to_have_text(FAILED, timeout=LOADS)
    assert page.locator(".results").count() == 0
    page.get_by_role("button", name="Remove Image").click()
    ask(page, "dog")
    assert first_image(page).is_visible()


def test_an_empty_query_gets_a_hint(page):
    page.get_by_role("button", name="Search").click()
    expect(status(page)).to_have_text("Type a query, or drop an image.", timeout=LOADS)


def test_names_and_queries_show_as_text(page):
    ask(page, "violin")
    expect(first_image(page, 0)).to_have_attribute("alt", image_page.NASTY)
    assert page.locator(".results bdi").first.inner_text() == image_page.NASTY
    ask(page, "<img src=y onerror=alert(2)> ${alert(3)} {{alert(4)}}")
    assert page.locator("img[src=x], img[src=y]").count() == 0


def test_the_page_is_used_by_keyboard_alone(page):
    for _ in range(3):  # from wherever the page starts
        if not query_box(page).evaluate("box => box === document.activeElement"):
            page.keyboard.press("Tab")
    page.keyboard.type("sunflower")
    page.keyboard.press("Enter")
    expect(status(page)).to_contain_text("“sunflower”", timeout=LOADS)
    stops = []
    for _ in range(3 + len(EXAMPLES)):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.ariaLabel || document.activeElement.innerText"))
    examples = [f"{text} {language}" for _, language, text in EXAMPLES]
    assert stops[:-1] == ["Search", *examples, "Drop an image file here to upload"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # the last example
    expect(status(page)).to_contain_text(f"“{EXAMPLES[-1][-1]}”", timeout=LOADS)


def test_a_screen_reader_is_told_what_is_where(page):
    ask(page, "sunflower")
    expect(page.get_by_role("main")).to_match_aria_snapshot(
        """
        - heading /Search \\d+ images/ [level=1]
        - textbox "Query, in any language"
        - button "Search"
        - group "Examples":
          - button "sunflower English"
          - button "mela rossa Italian"
        - text: Query image
        - button "Drop an image file here to upload"
        - status: /6 images for “sunflower”. Best of teacher. sunflower.png./
        - heading "teacher" [level=2]
        - list:
          - listitem:
            - figure /\\d.\\d{4} sunflower.png/:
              - img "sunflower.png"
        """,
        timeout=LOADS,
    )
    assert status(page).evaluate("region => region.role") == "status"  # polite by its role
    assert page.locator(".results img:not([alt])").count() == 0


@pytest.mark.skipif(not (STUDENT and SCREENSHOT), reason="takes XVLM2VEC_STUDENT and XVLM2VEC_SCREENSHOT")
def test_a_screenshot(page):
    page.set_viewport_size({"width": 1200, "height": 820})
    page.get_by_role("button", name="mela rossa Italian").click()
    expect(status(page)).to_contain_text("“mela rossa”", timeout=LOADS)
    expect(first_image(page)).to_have_attribute("alt", "red apple.png")
    page.mouse.move(0, 0)
    page.screenshot(path=SCREENSHOT, animations="disabled")
    assert Path(SCREENSHOT).stat().st_size < 300_000
