"""What the remote engine does when a service fails, stalls, or answers nonsense."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest

from qwen3_ranker_plugins import EngineClosedError, RemoteError, Reranker, ScoringError
from qwen3_ranker_plugins.engines.remote.client import message, retry_after
from qwen3_ranker_plugins.types import Request

from .services import Faulty, Reply, broken_off, dripping, reset, scores, silent, status

DOCUMENTS = ["zero", "one", "two"]
GOOD = [0.5, 0.501, 0.502]


def ask(service: Faulty | str, **options: object) -> Reranker:
    url = service if isinstance(service, str) else service.url
    return Reranker("m", engine="remote", engine_options={"url": url, "kind": "jina", **options})


def asked(service: Faulty, times: int) -> None:
    """Wait until `times` requests have arrived."""
    limit = time.monotonic() + 20
    while len(service.bodies) < times:
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.mark.parametrize(
    "fault",
    [status(429), status(502), status(503, "<html>"), status(504), reset, broken_off],
    ids=["429", "502", "503", "504", "reset", "broken off"],
)
def test_what_passes_is_tried_again(fault: Reply) -> None:
    with Faulty(fault, fault) as service, ask(service) as reranker:
        np.testing.assert_allclose(reranker.score("q", DOCUMENTS), GOOD, atol=1e-6)
        assert len(service.bodies) == 3
        assert service.bodies[0] == service.bodies[2]


def test_a_service_that_comes_up_late() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with ask(f"http://127.0.0.1:{port}", max_attempts=1) as reranker, pytest.raises(RemoteError) as caught:
        reranker.score("q", DOCUMENTS)
    assert "cannot be reached" in str(caught.value)
    assert caught.value.status is None


@pytest.mark.parametrize("code", [301, 400, 401, 404, 413, 422, 500])
def test_what_stays_is_not_tried_again(code: int) -> None:
    with Faulty(then=status(code, '{"detail": [{"msg": "too\\nlong"}]}', Location="/")) as service:
        with ask(service) as reranker, pytest.raises(RemoteError, match=f"answered {code} .*: too long") as caught:
            reranker.score("q", DOCUMENTS)
        assert caught.value.status == code
        assert len(service.bodies) == 1


def test_all_attempts_fail_and_the_message_is_short() -> None:
    page = f"<html><head><title>503 Backend\n down</title><script>{'x' * 9000}</script></head><body>no</body></html>"
    with Faulty(then=status(503, page, Content_Type="text/html")) as service, ask(service, max_attempts=2) as reranker:
        with pytest.raises(RemoteError, match=r"answered 503 .*: 503 Backend down \(attempt 2 of 2\)") as caught:
            reranker.score("q", DOCUMENTS)
        assert caught.value.status == 503
        assert len(service.bodies) == 2
        assert len(str(caught.value)) < 300


def test_retry_after_is_waited_for_and_capped() -> None:
    with Faulty(status(503, Retry_After="1")) as service, ask(service) as reranker:
        started = time.monotonic()
        reranker.score("q", DOCUMENTS)
        assert time.monotonic() - started >= 1
    with Faulty(status(429, Retry_After="86400")) as service, ask(service, max_retry_wait=0.1) as reranker:
        np.testing.assert_allclose(reranker.score("q", DOCUMENTS), GOOD, atol=1e-6)
    # A wait that would end after the deadline is not begun.
    with Faulty(status(503, Retry_After="20")) as service, ask(service, total_timeout=15) as reranker:
        started = time.monotonic()
        with pytest.raises(RemoteError, match="503"):
            reranker.score("q", DOCUMENTS)
        assert time.monotonic() - started < 15
    assert retry_after("7.5") == 7.5
    assert retry_after("-3") == 0
    assert retry_after("soon") is None
    assert retry_after("inf") is None
    assert retry_after(None) is None
    in_a_minute = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60)))
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60


def test_timeouts() -> None:
    with Faulty(then=silent) as service, ask(service, read_timeout=0.2) as reranker:
        with pytest.raises(RemoteError, match=r"sent nothing for read_timeout=0\.2 s"):
            reranker.score("q", DOCUMENTS)
        assert len(service.bodies) == 1, "a service that is too slow is not asked twice"
    with (
        Faulty(status(503), then=dripping) as service,
        ask(service, total_timeout=2) as reranker,
        pytest.raises(RemoteError, match=r"no answer within total_timeout=2 s; before that: .* 503"),
    ):
        reranker.score("q", DOCUMENTS)


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        ("NaN", "its score is nan"),
        ("Infinity", "its score is inf"),
        ("null", "its score is None, which is no number"),
        ('"0.5"', "its score is '0.5', which is no number"),
        ("true", "its score is True, which is no number"),
        ("1.5", "its score is 1.5, which is no probability"),
        ("-0.1", "its score is -0.1, which is no probability"),
        ("1" + "0" * 400, "its score is inf"),
    ],
)
def test_a_score_that_is_none_names_its_document(score: str, reason: str) -> None:
    with Faulty(then=scores((0, 0.5), (1, score), (2, 0.25))) as service, ask(service) as reranker:
        with pytest.raises(ScoringError, match=r"documents\[1\]") as caught:
            reranker.rerank("q", DOCUMENTS)
        assert reason in caught.value.failures[1]
        assert list(caught.value.failures) == [1]
        np.testing.assert_allclose(caught.value.margins, [0, np.nan, np.log(1 / 3)], atol=1e-6)
        assert len(service.bodies) == 1


def test_missing_and_repeated_documents_are_named_by_their_place_in_the_input() -> None:
    with Faulty(then=scores((0, 0.5))) as service, ask(service, documents_per_request=2) as reranker:
        with pytest.raises(ScoringError) as caught:
            reranker.rerank("q", ["one", "one", "three", "four", "five"])
        # Equal texts go out once, so that the parts are [one, three], [four, five] by length.
        assert set(caught.value.failures.values()) == {"the service's answer has no score for it"}
        assert len(caught.value.failures) == 2
    with (
        Faulty(then=scores((0, 0.5), (1, 0.4), (1, 0.3), (2, 0.1))) as service,
        ask(service) as reranker,
        pytest.raises(ScoringError, match=r"documents\[1\] could not be scored: the service scored it twice"),
    ):
        reranker.rerank("q", DOCUMENTS)


@pytest.mark.parametrize("index", [3, -1, "0", None, 1.0, True])
def test_an_index_that_is_none_spoils_the_answer(index: object) -> None:
    with Faulty(then=scores((0, 0.5), (1, 0.5), (index, 0.5))) as service, ask(service) as reranker:
        with pytest.raises(RemoteError, match=r"scored a document with index .*, and was sent 3"):
            reranker.rerank("q", DOCUMENTS)
        assert len(service.bodies) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"results": [{"index"', "not JSON"),
        ("", "not JSON"),
        ("<html><body>Sign in</body></html>", "not JSON: Sign in"),
        ("null", "without a list of results, with a NoneType"),
        ("[]", "without a list of results, with a list"),
        ('{"data": []}', "without a list of results, with an object of data"),
        ('{"results": {"index": 0}}', "without a list of results"),
        ('{"results": [1, 2, 3]}', "scored a document with index None"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_an_answer_of_another_kind(answer: str, said: str) -> None:
    with Faulty(then=status(200, answer)) as service, ask(service) as reranker:
        with pytest.raises(Exception, match=said):
            reranker.rerank("q", DOCUMENTS)
        assert len(service.bodies) == 1


def test_logits_where_the_service_gives_them() -> None:
    with Faulty(then=scores((2, 31.5), (0, 3), (1, -40.25))) as service, ask(service, scores="logit") as reranker:
        result = reranker.rerank("q", DOCUMENTS)
        assert [(hit.index, hit.margin) for hit in result] == [(2, 31.5), (0, 3), (1, -40.25)]
    with (
        Faulty(then=scores((2, "1e300"), (0, 3), (1, 1))) as service,
        ask(service, scores="logit") as reranker,
        pytest.raises(ScoringError, match=r"documents\[2\] .* its score is 1e\+300"),
    ):
        reranker.rerank("q", DOCUMENTS)


def test_rounded_scores_keep_the_services_order() -> None:
    """Scores that are rounded to 0 and 1 are equal; the order in which they come is what the service knows."""
    order = [4, 1, 5, 0, 6, 2, 3]
    values = [1.0, 1.0, 0.9999999, 0.5, 1e-300, 0.0, 0.0]
    with Faulty(then=scores(*zip(order, values, strict=True))) as service, ask(service) as reranker:
        result = reranker.rerank("q", [str(i) for i in range(7)])
        assert [hit.index for hit in result] == order
        assert [hit.score for hit in result] == pytest.approx(values, abs=1e-12)
        assert all(np.isfinite(hit.margin) for hit in result)
    # Services that do not rank say nothing about ties: those keep their input order.
    unranked = scores((1, 1.0), (0, 0.2), (2, 1.0))
    with Faulty(then=unranked) as service, ask(service) as reranker:
        assert [hit.index for hit in reranker.rerank("q", DOCUMENTS)] == [1, 2, 0]


def test_cancelling_hangs_up_at_once() -> None:
    with Faulty(then=silent) as service, ask(service) as reranker:

        async def give_up() -> None:
            call = asyncio.ensure_future(reranker.arerank("q", DOCUMENTS))
            await asyncio.to_thread(asked, service, 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

        asyncio.run(give_up())
        assert service.hung_up.wait(10), "the connection was closed, so that the service may drop the work"


def test_a_cancelled_call_is_not_tried_again() -> None:
    with (
        Faulty(then=status(503, Retry_After="1")) as service,
        ask(service, max_attempts=100, documents_per_request=1, concurrency=2) as reranker,
    ):
        future = reranker.submit(reranker.prepare(Request("q", DOCUMENTS)))
        asked(service, 2)
        assert future.cancel()
        time.sleep(2.5)
        assert len(service.bodies) == 2, "neither another attempt, nor the document that was waiting"
        with pytest.raises(CancelledError):
            future.result()


def test_one_failed_part_ends_the_others() -> None:
    with (
        Faulty(status(400), then=silent) as service,
        ask(service, documents_per_request=1, concurrency=3) as reranker,
        pytest.raises(RemoteError, match="400"),
    ):
        reranker.rerank("q", DOCUMENTS)
    with (
        Faulty(silent, status(400), then=silent) as service,
        ask(service, documents_per_request=1, concurrency=3) as reranker,
    ):
        with pytest.raises(RemoteError, match="400"):
            reranker.rerank("q", DOCUMENTS)
        assert service.hung_up.wait(10)


def test_a_caller_does_not_wait_for_another_callers_request() -> None:
    with Faulty(silent) as service, ask(service, concurrency=2) as reranker, ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(reranker.rerank, "q", DOCUMENTS)
        asked(service, 1)
        assert len(reranker.rerank("q", DOCUMENTS)) == 3
        assert not stuck.done()
        service.released.set()
        with pytest.raises(RemoteError):  # the service hangs up without an answer, and is asked again
            raise stuck.exception(20) or RemoteError("answered at the second attempt")


def test_no_more_requests_at_a_time_than_asked_for() -> None:
    most = 0
    lock, now = threading.Lock(), [0]

    def counting(handler, body) -> None:  # type: ignore[no-untyped-def]
        nonlocal most
        with lock:
            now[0] += 1
            most = max(most, now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        scores(*((i, 0.5) for i in range(len(body["documents"]))))(handler, body)

    with Faulty(then=counting) as service, ask(service, concurrency=3, documents_per_request=1) as reranker:
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda i: reranker.rerank(f"q {i}", DOCUMENTS), range(4)))
        assert all(len(result) == 3 for result in results)
        assert most == 3


def test_closing_waits_for_the_request_in_flight_and_fails_the_rest() -> None:
    others = set(threading.enumerate())  # of rerankers that earlier tests left to the garbage collector
    with Faulty(then=silent) as service:
        reranker = ask(service, concurrency=1, documents_per_request=1, read_timeout=1)
        assert {thread.name for thread in set(threading.enumerate()) - others} >= {"qwen3-ranker-remote"}
        first, second = (reranker.submit(reranker.prepare(Request(f"q {i}", ["text"]))) for i in range(2))
        asked(service, 1)
        reranker.close()
        assert "read_timeout" in str(first.exception(0))
        with pytest.raises(EngineClosedError):
            second.result(0)
    assert not [thread.name for thread in set(threading.enumerate()) - others]


def rows(*entries: str) -> Reply:
    """An answer of vLLM's /pooling."""
    return status(200, f'{{"data": [{", ".join(entries)}]}}')


def test_the_scores_of_a_row_find_their_documents() -> None:
    """A row has its documents in order of length."""
    documents = ["a text of several words", "a", "two words"]
    with (
        Faulty(rows('{"index": 0, "data": [-1.0, 0.5, 2.0]}')) as service,
        ask_for_rows(service) as reranker,
    ):
        hits = {hit.index: hit.margin for hit in reranker.rerank("q", documents)}
        assert hits == {1: -1.0, 2: 0.5, 0: 2.0}
        [body] = service.bodies
    assert (body["task"], body["use_activation"], len(body["input"])) == ("token_classify", False, 1)
    assert body["input"][0].count(14459) == 4  # the marker, at the end of the prefix and of each document


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (rows('{"index": 0, "data": [1.0, 2.0]}'), "gave 2 scores for a row of 3 documents"),
        (rows('{"index": 0, "data": [[1.0], [2.0], [3.0]]}'), "could not be scored"),
        (rows('{"index": 0, "data": [1.0, NaN, 2.0]}'), "its score is nan"),
        (rows('{"index": 1, "data": [1.0, 2.0, 3.0]}'), "instead of the scores of a row"),
        (rows('{"index": 0, "data": "AAAA"}'), "instead of the scores of a row"),
        (rows("7"), "instead of the scores of a row"),
        (rows(), "could not be scored"),
        (status(200, '{"data": [{"index": 0, "data": [1, 2, 3]}], "usage": {"prompt_tokens": 7}}'), "read 7 tokens"),
    ],
)
def test_unusable_answers_to_rows(answer: Reply, said: str) -> None:
    with (
        Faulty(answer) as service,
        ask_for_rows(service) as reranker,
        pytest.raises((RemoteError, ScoringError), match=said),
    ):
        reranker.rerank("q", DOCUMENTS)


def ask_for_rows(service: Faulty) -> Reranker:
    options = {"url": service.url, "kind": "vllm", "route": "packed"}
    return Reranker("bundled:tiny", engine="remote", engine_options=options)


def test_no_document_and_no_key_in_the_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3_RANKER_API_KEY", "correct-horse")
    caplog.set_level(logging.DEBUG)
    with Faulty(status(503)) as service, ask(service) as reranker:
        reranker.rerank("a query nobody should read", ["a document nobody should read"])
    assert service.bodies
    assert "nobody should read" not in caplog.text
    assert "correct-horse" not in caplog.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "bad", "code": 3}}', "bad"),
        ('{"error": "Unauthorized"}', "Unauthorized"),
        ('{"detail": [{"loc": ["body"], "msg": "Field required"}]}', "Field required"),
        ('{"message": "invalid api token"}', "invalid api token"),
        ('["a", "b"]', "a"),
        ('{"code": 3}', '{"code": 3}'),
        ("plain\x1b[31m text", "plain [31m text"),
        ("<h1>Bad&nbsp;gateway</h1><style>h1 {}</style>", "Bad gateway"),
        ("x" * 500, "x" * 197 + "..."),
    ],
)
def test_messages(body: str, said: str) -> None:
    assert message(body) == said
