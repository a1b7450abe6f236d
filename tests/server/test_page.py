"""The page in a real browser; its screenshots are kept below build/."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from qwen3_ranker_plugins import Reranker
from qwen3_ranker_plugins.data.demo import load_demo_corpus

from .conftest import Running, serving

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
#: Browsers that a machine may have besides playwright's own.
INSTALLED = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: The server's limit of documents, and so the number of passages of an example: fewer than 50 take less time.
CANDIDATES = 12
PHONE = {"width": 390, "height": 844}

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


@pytest.fixture(scope="module")
def small(reranker: Reranker) -> Iterator[Running]:
    with serving(max_documents=CANDIDATES) as running:
        yield running


@pytest.fixture(params=["light", "dark"])
def page(browser: Browser, small: Running, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page with its first example ranked; anything that it complains about or asks of another host is an error."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900},
        color_scheme=request.param,
        permissions=["clipboard-read", "clipboard-write"],
    )
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "request", lambda each: None if each.url.startswith((small.url, "data:")) else complaints.append(each.url)
    )
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    opened.goto(small.url)
    expect(opened.locator("#health")).to_have_text("healthy")
    expect(opened.locator("li.first")).to_have_count(1, timeout=60_000)
    yield opened
    context.close()
    assert not complaints


light_only = pytest.mark.parametrize("page", ["light"], indirect=True)


def ndcg(grades: Sequence[int], judged: Sequence[int]) -> float:
    def gain(values: Sequence[int]) -> float:
        return sum(value / math.log2(rank + 1) for rank, value in enumerate(values[:10], start=1))

    return gain(grades) / gain(sorted(judged, reverse=True))


def violations(page: Page) -> list[str]:
    """What axe-core finds by the rules of WCAG 2.2 AA and its best practices."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {[node['target'] for node in each['nodes']]}" for each in found]


@light_only
def test_the_page_opens_on_a_ranked_example(page: Page, small: Running) -> None:
    corpus = load_demo_corpus()
    shown = corpus.shown[0]
    expect(page.locator("#demo option")).to_have_count(len(corpus.queries) + 1)
    assert page.locator("#demo").input_value() == shown.query_id
    assert page.get_by_label("Query").input_value() == corpus.queries[shown.query_id]
    first_group = page.locator("#demo optgroup").first
    assert first_group.get_attribute("label") == "Typical gains, then the largest loss"
    values = first_group.locator("option").evaluate_all("(options) => options.map((each) => each.value)")
    assert values == [each.query_id for each in corpus.shown]

    found = httpx.get(f"{small.url}/demo/{shown.query_id}").json()
    grades = [each["grade"] for each in found["candidates"]]
    documents = page.evaluate("() => request().documents")
    # As the demo judges them: indentation counts. Only blank lines are left out, because they end a document.
    assert [each.split("\n") for each in documents] == [
        [line for line in each["text"].strip().split("\n") if line.strip()] for each in found["candidates"]
    ]
    assert any("\n    >>> " in each for each in documents)
    body = {"query": found["query"], "documents": documents}
    answer = httpx.post(f"{small.url}/v1/rerank", json=body, timeout=60).json()
    after = [grades[each["index"]] for each in answer["results"]]
    old, new = (ndcg(each, found["judged"]) for each in (grades, after))
    expect(page.locator("#quality")).to_contain_text(f"nDCG@10 {old:.2f} → {new:.2f}")
    expect(page.locator("#quality")).to_contain_text(shown.reason)
    stars = page.locator("#list .tags").evaluate_all(
        "(all) => all.map((each) => each.querySelector('.star')?.textContent ?? '')"
    )
    assert stars == [{2: "★★ answers the question", 1: "★ helps", 0: ""}[grade] for grade in after]
    # Stars, score and model are explained, each in a line.
    for term in ("Score", "Stars", "nDCG@10", "Model"):
        expect(page.locator("#legend dt", has_text=term)).to_be_visible()
    expect(page.locator("#demonstration")).to_be_visible()
    expect(page.locator("#explained")).to_have_text(
        "bundled:tiny is a demo model. For real work: qwen3-ranker serve --model Qwen/Qwen3-Reranker-0.6B"
    )


def test_examples_have_the_candidates_and_judgements_of_the_demo(client: httpx.Client) -> None:
    corpus = load_demo_corpus()
    demo = client.get("/demo").json()
    assert demo["shown"] == {each.query_id: each.reason for each in corpus.shown}
    assert demo["guarded"] is False
    query_id = corpus.shown[3].query_id
    found = client.get(f"/demo/{query_id}").json()
    assert len(found["candidates"]) == 50
    assert found["judged"] == sorted(corpus.qrels[query_id].values(), reverse=True)
    assert found["reason"].startswith("largest loss of all questions, -")
    other = next(each for each in corpus.queries if each not in demo["shown"])
    assert client.get(f"/demo/{other}").json()["reason"] is None


def test_the_demo_corpus_moves_into_its_new_order(page: Page, small: Running, request: pytest.FixtureRequest) -> None:
    scheme = request.node.callspec.params["page"]
    corpus = load_demo_corpus()
    query_id = list(corpus.queries)[3]
    page.select_option("#demo", query_id)
    cards = page.locator("#list li")
    expect(cards).to_have_count(CANDIDATES)
    expect(page.get_by_label("Query")).to_have_value(corpus.queries[query_id])
    expect(page.locator("#status")).to_have_text(f"{CANDIDATES} documents, most relevant first", timeout=60_000)

    page.locator("#options summary").click()
    page.get_by_label("Cut to tokens").fill("60")
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator("#cut")).to_be_visible(timeout=60_000)
    page.wait_for_timeout(1000)  # the cards move
    page.screenshot(path=SCREENSHOTS / f"page-{scheme}.png")

    texts = [each["text"] for each in httpx.get(f"{small.url}/demo/{query_id}").json()["candidates"]]
    shown = page.evaluate(
        "() => cards.slice().sort((a, b) => a.rank.textContent - b.rank.textContent).map(each => each.index)"
    )
    sent = page.evaluate("() => request().documents")
    assert [each.split() for each in sent] == [text.split() for text in texts]
    answer = httpx.post(
        f"{small.url}/v1/rerank", json={"query": corpus.queries[query_id], "documents": sent, "max_tokens_per_doc": 60}
    ).json()
    assert shown == [each["index"] for each in answer["results"]]
    assert cards.locator(".value").all_text_contents() == [
        f"{each['relevance_score']:.3f}" for each in answer["results"]
    ]
    assert [int(text) for text in cards.locator(".rank").all_text_contents()] == list(range(1, CANDIDATES + 1))
    assert page.locator("#cut").inner_text().startswith(f"{len(answer['meta']['truncated'])} of 12 documents were cut")
    assert page.locator("#figures dd").count() == 4
    width = (
        "(each) => each.querySelector('.fill').getBoundingClientRect().width / each.querySelector('.track').offsetWidth"
    )
    for number, each in enumerate(answer["results"]):
        assert cards.nth(number).evaluate(width) == pytest.approx(max(0.004, each["relevance_score"]), abs=0.02)


@light_only
def test_pasted_texts_are_shown_as_text(page: Page) -> None:
    page.get_by_label("Query").fill("how do I close a file?")
    page.locator("#documents").fill("<b>Bread</b> needs yeast.\nThe with statement closes the file.\n\n")
    assert page.locator("#demo").input_value() == ""
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator("li.first .text")).to_have_text("The with statement closes the file.", timeout=60_000)
    expect(page.locator("li").nth(1).locator(".text")).to_have_text("<b>Bread</b> needs yeast.")
    expect(page.locator("#quality")).to_be_hidden()  # nobody has judged these
    expect(page.locator("#list .star")).to_have_count(0)


@light_only
def test_pasted_text_is_recognised_and_the_reading_can_be_changed(page: Page) -> None:
    cases: list[tuple[str, str, list[str]]] = [
        ("a\nb\nc", "lines", ["a", "b", "c"]),
        ("a\nb\n\nc\nd", "lines", ["a", "b", "c", "d"]),  # one blank line among many does not merge
        ("a\n\nb\n\nc", "lines", ["a", "b", "c"]),
        ("a\nb\n\nc\nd\n \ne\nf", "blocks", ["a\nb", "c\nd", "e\nf"]),
        ('["a", "b\\n\\nc"]', "json", ["a", "b\n\nc"]),
        ('[{"text": "a"}, {"title": "T", "content": "b"}]', "json", ["a", "T\nb"]),
        ('{"documents": ["a", "b"]}', "json", ["a", "b"]),
        ('{"text": "a"}\n{"text": "b"}', "jsonl", ["a", "b"]),
        ("[1] a citation\n[2] another", "lines", ["[1] a citation", "[2] another"]),
        ("  ", "lines", []),
    ]
    for text, name, documents in cases:
        assert page.evaluate("(text) => [recognise(text), split(text)]", text) == [name, documents]

    page.locator("#documents").fill("a\nb\n\nc\nd")
    expect(page.locator("#count")).to_have_text("4 · one per line")
    page.get_by_role("button", name="Read as 2 blocks instead").click()
    expect(page.locator("#count")).to_have_text("2 · blank-line blocks")
    page.locator("#format").select_option("json")
    expect(page.locator("#count")).to_contain_text("This is not JSON")
    page.locator("#documents").fill('[{"name": "a"}]')
    page.get_by_role("button", name="Rerank").click()
    expect(page.get_by_role("alert")).to_contain_text("Entry 1 has no text: make it a string, or an object with one of")
    page.locator("#documents").fill("")
    page.locator("#format").select_option("auto")
    page.get_by_role("button", name="Rerank").click()
    expect(page.get_by_role("alert")).to_have_text("Give at least one document.")


@light_only
def test_a_document_can_be_explained(page: Page) -> None:
    """Its sentences are marked by what they add; an emoji in front of them does not move the marks."""
    text = "🙂 A tuple is immutable. The with statement closes a file. A set is mutable."
    page.fill("#query", "how is a file closed?")
    page.fill("#documents", f"{text}\nBread needs yeast.")
    page.press("#query", "Enter")
    card = page.locator("#list.ranked > li").filter(has_text="with statement")
    card.get_by_role("button", name="Explain").click()
    marks = card.locator("mark")
    expect(marks).to_have_count(3)
    assert "".join(marks.all_text_contents()) == text
    assert marks.nth(1).get_attribute("class") == "speaks"
    assert marks.nth(1).text_content() == "The with statement closes a file. "
    shares = [
        int(share[:-1]) for share in marks.evaluate_all("all => all.map(m => m.style.getPropertyValue('--share'))")
    ]
    assert max(shares) == shares[1] == 45


def test_files_become_documents(page: Page, tmp_path: Path) -> None:
    files = {
        "table.csv": 'id,content\n1,"first, with a comma"\n2,"second ""quoted""\nand broken"\n',
        "other.csv": "nr;what\n1;the longest column is taken\n2;and said\n",
        "lines.jsonl": '{"_id": "1", "title": "T", "text": "a"}\n"b"\n',
        "array.json": '["a", "b", "c"]',
        "notes.txt": "one\ntwo\n",
        "page.txt": "a whole\n\nfile",
        "broken.json": '["a",',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)

    def documents_of(*names: str) -> list[str]:
        page.locator("#files").set_input_files([])
        page.locator("#files").set_input_files([tmp_path / name for name in names])
        expect(page.locator("#count")).to_contain_text(names[0])
        found: list[str] = page.evaluate("() => request().documents")
        return found

    assert documents_of("table.csv") == ["first, with a comma", 'second "quoted"\nand broken']
    expect(page.locator("#count")).to_have_text("2 · table.csv, column “content”")
    assert documents_of("other.csv") == ["the longest column is taken", "and said"]
    assert documents_of("lines.jsonl") == ["T\na", "b"]
    assert documents_of("array.json") == ["a", "b", "c"]
    assert documents_of("notes.txt") == ["one", "two"]
    assert documents_of("page.txt", "notes.txt") == ["a whole\n\nfile", "one\ntwo"]
    page.locator("#files").set_input_files(tmp_path / "broken.json")
    expect(page.get_by_role("alert")).to_contain_text("broken.json: This is not JSON")

    # Dropped on the form, as from a file manager.
    dropped = page.evaluate_handle(
        "() => { const data = new DataTransfer(); data.items.add(new File(['x\\ny\\nz'], 'drop.txt')); return data; }"
    )
    page.dispatch_event("#form", "drop", {"dataTransfer": dropped})
    expect(page.locator("#count")).to_have_text("3 · one per line · drop.txt")


@light_only
def test_copied_commands_run_and_answer_what_the_page_shows(page: Page, small: Running) -> None:
    page.get_by_label("Query").fill('who\'s "quoted" & $HOME?')
    page.locator("#documents").fill("It's `here` \\ and\u2028there.\nThe with statement closes the file.")
    page.get_by_role("button", name="Rerank").click()
    expect(page.locator("#status")).to_have_text("2 documents, most relevant first", timeout=60_000)
    shown = page.locator("#list .value").all_text_contents()
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#curl")).to_have_text("Copied")
    command = page.evaluate("() => navigator.clipboard.readText()")
    assert "Authorization" not in command
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert [f"{each['relevance_score']:.3f}" for each in json.loads(done.stdout)["results"]] == shown

    page.get_by_role("button", name="Copy as Python").click()
    expect(page.locator("#python")).to_have_text("Copied")
    program = page.evaluate("() => navigator.clipboard.readText()")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.strip().split("\n")] == shown


def test_without_a_clipboard_the_command_is_shown_and_selected(browser: Browser, small: Running) -> None:
    """Browsers give no clipboard to pages over plain HTTP, except on localhost."""
    page = browser.new_page()
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.goto(small.url)
    page.get_by_role("button", name="Copy as curl").click(timeout=60_000)
    expect(page.locator("#snippet")).to_contain_text(f"curl {small.url}/v1/rerank")
    assert page.evaluate("() => getSelection().toString()").startswith("curl")
    assert violations(page) == []
    page.close()


@light_only
def test_a_thousand_documents_are_laid_out_once(page: Page) -> None:
    """A layout for each card froze the page for seconds. Other processes change neither layouts nor processor time."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def metrics() -> dict[str, float]:
        return {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}

    def check(script: str) -> None:
        before = metrics()
        page.evaluate(f"() => {{ {script} }}")
        after = metrics()
        assert after["LayoutCount"] - before["LayoutCount"] <= 4
        assert after["TaskDuration"] - before["TaskDuration"] < 0.5  # seconds of processor time

    page.evaluate(
        "() => { window.many = Array.from({length: 1000}, (_, n) => `${n} ` + 'few words '.repeat(n % 90)); }"
    )
    check("show(many); byId('list').getBoundingClientRect();")
    assert page.locator("#list li").count() == 1000
    check("reorder({meta: {}, results: many.map((_, n) => ({index: 999 - n, relevance_score: 0.5}))});")
    expect(page.locator("#list .rank").first).to_have_text("1")
    expect(page.locator("#list .text").first).to_have_text(re.compile("^999 "))
    # Cards that come into view get a button if their text is cut; the others are not measured.
    page.evaluate("() => scrollTo(0, 50_000)")
    page.wait_for_function(
        """() => {
          const inView = cards.filter(({ item }) => {
            const place = item.getBoundingClientRect();
            return place.top < innerHeight && place.bottom > 0;
          });
          return inView.length > 2 && inView.every(({ item, content }) => (
            (content.scrollHeight > content.clientHeight + 2) === Boolean(item.querySelector("button"))));
        }"""
    )
    assert 0 < page.locator("#list button").count() < 100


@light_only
def test_the_keyboard_suffices(page: Page) -> None:
    page.locator("body").press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the results"
    page.get_by_label("Query").focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("how do I close a file?")
    page.keyboard.press("Enter")  # submits, and makes no new line
    expect(page.locator("#status")).to_have_text(f"{CANDIDATES} documents, most relevant first", timeout=60_000)
    assert page.get_by_label("Query").input_value() == "how do I close a file?"
    page.keyboard.press("Tab")  # the fold
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.id") == "documents"
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("With closes a file.")
    page.keyboard.press("ControlOrMeta+Enter")
    expect(page.locator("#status")).to_have_text("1 documents, most relevant first", timeout=60_000)
    page.select_option("#demo", load_demo_corpus().shown[1].query_id)
    fold = page.get_by_role("button", name="Show all").first
    fold.focus(timeout=60_000)
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.getAttribute('aria-expanded')") == "true"


def test_axe_finds_nothing(page: Page) -> None:
    """Contrast, labels, roles, order of headings: what axe-core checks, in both colour schemes."""
    page.locator("#options summary").click()
    page.wait_for_timeout(1000)  # the cards move
    assert violations(page) == []
    page.locator("#documents").fill("a\nb\n\nc")
    page.locator("#format").select_option("json")
    page.get_by_role("button", name="Rerank").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert violations(page) == []
    page.evaluate("() => document.body.append(document.createElement('img'))")
    assert [each.partition(":")[0] for each in violations(page) if "alt" in each]  # it does find what is wrong


def test_an_error_of_the_server_is_shown(browser: Browser, reranker: Reranker) -> None:
    with serving(max_documents=3) as running:
        page = browser.new_page()
        page.goto(running.url)
        page.get_by_label("Query").fill("q")
        page.locator("#documents").fill("a\nb\nc\nd")
        page.get_by_role("button", name="Rerank").click()
        expect(page.get_by_role("alert")).to_contain_text("413: 4 documents; the limit is 3")
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / "page-error.png")
        page.close()


def test_a_guarded_page_opens_with_the_key_as_password(browser: Browser, reranker: Reranker) -> None:
    with serving(keys=("page-key-0123456789",), max_documents=CANDIDATES) as running:
        context = browser.new_context(http_credentials={"username": "anybody", "password": "page-key-0123456789"})
        page = context.new_page()
        page.goto(running.url)
        page.get_by_label("Query").fill("q")
        page.locator("#documents").fill("a\nb")
        page.get_by_role("button", name="Rerank").click()
        expect(page.locator("li.first")).to_have_count(1, timeout=60_000)
        for text in page.evaluate("() => Object.values(snippets())"):
            assert "Authorization: Bearer $KEY" in text or '"Authorization": "Bearer KEY"' in text
        context.close()


def test_on_a_telephone_results_are_in_view_and_nothing_sticks_out(browser: Browser, small: Running) -> None:
    page = browser.new_page(viewport=PHONE)
    page.goto(small.url)
    expect(page.locator("li.first")).to_have_count(1, timeout=60_000)
    page.wait_for_timeout(1000)  # the cards move
    expect(page.locator("#list li")).to_have_count(CANDIDATES)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.screenshot(path=SCREENSHOTS / "page-narrow.png")
    first = page.locator("li.first").bounding_box()
    assert first is not None
    assert first["y"] + first["height"] < PHONE["height"]
    assert violations(page) == []
    # After pressing Rerank, the results come up to the top.
    page.get_by_role("button", name="Rerank").click()
    page.wait_for_function("() => byId('results').getBoundingClientRect().top < 100")
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
