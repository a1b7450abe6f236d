"""The page in a real browser; its screenshots are kept below build/."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.data.demo import load_demo_corpus

from .conftest import Running, serving

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
#: Browsers that a machine may have besides playwright's own.
INSTALLED = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # inside playwright's driver


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        installed = next((found for name in INSTALLED if (found := shutil.which(name))), None)
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        try:
            opened = playwright.chromium.launch(executable_path=installed, args=arguments)
        except Error as error:
            if os.environ.get("RANKER_TEST_BROWSER") == "required":
                raise
            pytest.skip(f"no Chromium: apt-get install chromium, or playwright install chromium ({error.message[:80]})")
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def page(browser: Browser, server: Running, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page; anything that it complains about or asks of another host is an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=request.param)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request", lambda each: None if each.url.startswith((server.url, "data:")) else complaints.append(each.url)
    )
    opened.goto(server.url)
    expect(opened.locator("#health")).to_have_text("healthy")
    yield opened
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    context.close()
    assert not complaints


def test_the_demo_corpus_moves_into_its_new_order(
    page: Page, server: Running, reranker: Reranker, request: pytest.FixtureRequest
) -> None:
    scheme = request.node.callspec.params["page"]
    corpus = load_demo_corpus()
    query_id = list(corpus.queries)[3]
    expect(page.locator("#demo option")).to_have_count(len(corpus.queries))
    page.select_option("#demo", query_id)
    page.get_by_role("button", name="Load").click()
    cards = page.locator("#list li")
    expect(cards).to_have_count(12)
    expect(page.get_by_label("Query")).to_have_value(corpus.queries[query_id])
    page.screenshot(path=SCREENSHOTS / f"page-{scheme}-before.png")

    page.get_by_label("Cut to tokens").fill("60")
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator("li.first")).to_have_count(1, timeout=60_000)
    page.wait_for_timeout(1000)  # the cards move
    page.screenshot(path=SCREENSHOTS / f"page-{scheme}.png")

    texts = [each["text"] for each in httpx.get(f"{server.url}/demo/{query_id}").json()["candidates"]]
    shown = page.evaluate(
        "() => cards.slice().sort((a, b) => a.rank.textContent - b.rank.textContent).map(each => each.index)"
    )
    sent = page.evaluate("() => split(document.getElementById('documents').value)")
    assert [each.split() for each in sent] == [text.split() for text in texts]
    answer = httpx.post(
        f"{server.url}/v1/rerank", json={"query": corpus.queries[query_id], "documents": sent, "max_tokens_per_doc": 60}
    ).json()
    assert shown == [each["index"] for each in answer["results"]]
    assert cards.locator(".value").all_inner_texts() == [f"{each['relevance_score']:.3f}" for each in answer["results"]]
    assert [int(text) for text in cards.locator(".rank").all_inner_texts()] == list(range(1, 13))
    assert page.locator("#cut").inner_text().startswith(f"{len(answer['meta']['truncated'])} of 12 documents were cut")
    assert page.locator("#figures dd").count() == 4
    width = (
        "(each) => each.querySelector('.fill').getBoundingClientRect().width / each.querySelector('.track').offsetWidth"
    )
    for number, each in enumerate(answer["results"]):
        assert cards.nth(number).evaluate(width) == pytest.approx(max(0.004, each["relevance_score"]), abs=0.02)


def test_pasted_texts_are_shown_as_text(page: Page) -> None:
    page.get_by_label("Query").fill("how do I close a file?")
    page.get_by_label("Documents").fill("<b>Bread</b> needs yeast.\nThe with statement closes the file.\n\n")
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator("li.first .text")).to_have_text("The with statement closes the file.", timeout=60_000)
    expect(page.locator("li").nth(1).locator(".text")).to_have_text("<b>Bread</b> needs yeast.")


def test_an_error_of_the_server_is_shown(browser: Browser, reranker: Reranker) -> None:
    with serving(max_documents=3) as running:
        page = browser.new_page()
        page.goto(running.url)
        page.get_by_label("Query").fill("q")
        page.get_by_label("Documents").fill("a\nb\nc\nd")
        page.get_by_role("button", name="Rerank").click()
        expect(page.get_by_role("alert")).to_contain_text("413: 4 documents; one request may hold 3")
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / "page-error.png")
        page.close()


def test_a_guarded_page_opens_with_the_key_as_password(browser: Browser, reranker: Reranker) -> None:
    with serving(keys=("page-key-0123456789",)) as running:
        context = browser.new_context(http_credentials={"username": "anybody", "password": "page-key-0123456789"})
        page = context.new_page()
        page.goto(running.url)
        page.get_by_label("Query").fill("q")
        page.get_by_label("Documents").fill("a\nb")
        page.get_by_role("button", name="Rerank").click()
        expect(page.locator("li.first")).to_have_count(1, timeout=60_000)
        context.close()


def test_on_a_telephone_nothing_sticks_out(browser: Browser, server: Running) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 800})
    page.goto(server.url)
    expect(page.locator("#demo option").first).to_be_attached()
    page.get_by_role("button", name="Load").click()
    expect(page.locator("#list li")).to_have_count(12)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.screenshot(path=SCREENSHOTS / "page-narrow.png")
    page.close()


def test_the_policy_allows_nothing_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http:" not in policy
    assert "https:" not in policy
    assert "src=" not in answer.text.split("<body>")[1]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
