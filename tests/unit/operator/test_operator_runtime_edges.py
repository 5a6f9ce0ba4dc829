"""The small parts at the operator's edges: verdicts on errors, events, watches that fall silent, supervision."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from emoe.core.errors import InvalidRequestError
from emoe.v1 import loader_pb2 as pb
from emoe_operator.activity import WatchActivity, heard_by
from emoe_operator.errors import ApiError, NameTakenError, Verdict, verdict_of
from emoe_operator.events import changed_conditions, describe, is_warning
from emoe_operator.loader_views import parse_model_view
from emoe_operator.metrics import Metrics
from emoe_operator.supervision import first_to_end


def api_error(status: int, *, message: str = "", cause: str = "") -> ApiError:
    answer = {"reason": "Any", "message": message, "details": {"causes": [{"reason": cause}] if cause else []}}
    return ApiError.parse("PATCH /x", status=status, answer=answer)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        pytest.param(api_error(0), Verdict.TEMPORARY, id="no-answer"),
        pytest.param(api_error(409), Verdict.TEMPORARY, id="conflict"),
        pytest.param(api_error(403, message="exceeded quota"), Verdict.TEMPORARY, id="quota"),
        pytest.param(api_error(429), Verdict.TEMPORARY, id="too-many"),
        pytest.param(api_error(503), Verdict.TEMPORARY, id="unavailable"),
        pytest.param(api_error(422), Verdict.PERMANENT, id="invalid"),
        pytest.param(api_error(403, cause="NamespaceTerminating"), Verdict.GONE, id="namespace-terminating"),
        pytest.param(api_error(404, message='namespaces "x" not found'), Verdict.GONE, id="namespace-gone"),
        pytest.param(NameTakenError("x"), Verdict.TEMPORARY, id="name-taken"),
        pytest.param(InvalidRequestError("x"), Verdict.PERMANENT, id="ours"),
        pytest.param(ZeroDivisionError(), Verdict.TEMPORARY, id="a-bug"),
    ],
)
def test_what_follows_from_an_error(error: Exception, verdict: Verdict) -> None:
    assert verdict_of(error) is verdict


def test_an_answer_that_is_no_status_is_an_error_all_the_same() -> None:
    error = ApiError.parse("GET /x", status=502, answer="<html>bad gateway</html>")
    assert (error.status, error.reason) == (502, "Status502")


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def status(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"conditions": list(conditions)}


def test_a_message_alone_is_no_news_and_a_repeated_one_is_told_once() -> None:
    before = status(condition("ModelReady", "False", "ModelFetching", "1%"))
    after = status(
        condition("Ready", "False", "ModelFetching", "2%"),
        condition("ModelReady", "False", "ModelFetching", "2%"),
        condition("Progressing", "True", "ModelFetching"),
    )
    assert [one["type"] for one in changed_conditions(before, after)] == ["Ready"]
    assert list(changed_conditions(after, after)) == []


def test_only_what_needs_a_person_or_stops_serving_is_a_warning() -> None:
    served = status(condition("Available", "True", "Serving"))
    assert not is_warning(condition("Ready", "True", "Serving"), {})
    assert not is_warning(condition("WorkersReady", "False", "Loading"), served)
    assert is_warning(condition("WorkersReady", "False", "ImagePullFailed"), served)
    assert not is_warning(condition("Available", "False", "NoWorkerReady"), {})
    assert is_warning(condition("Available", "False", "NoWorkerReady"), served)


def test_an_event_fits_what_the_api_server_takes() -> None:
    resource = {"metadata": {"name": "tiny", "namespace": "default", "uid": "u"}}
    now = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    event = describe(resource, condition("Ready", "False", "R" * 999, "m" * 9999), warning=True, now=now)
    assert len(event["note"]) <= 1024
    assert len(event["reason"]) <= 128
    assert (event["type"], event["eventTime"]) == ("Warning", "2026-01-02T00:00:00.000000Z")
    assert event["regarding"]["uid"] == "u"


def test_a_watch_that_falls_silent_is_named() -> None:
    now = 0.0
    activity = WatchActivity(("/api/v1/pods", "/api/v1/services"), clock=lambda: now)
    now = 100.0
    activity.hear("/api/v1/pods")
    activity.hear("/somewhere/else")
    assert activity.silent(150) == []
    now = 200.0
    assert activity.silent(150) == ["/api/v1/services"]


async def test_bookmarks_that_no_handler_sees_are_heard() -> None:
    heard: list[str] = []
    go_on = asyncio.Event()

    async def watch(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type": "BOOKMARK"}\n')
        await go_on.wait()
        await response.write(b'{"type": "BOOKMARK"}\n')
        return response

    class Heard(WatchActivity):
        def hear(self, path: str) -> None:
            heard.append(path)

    app = web.Application()
    app.router.add_get("/api/v1/pods", watch)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/api/v1/pods?watch=true"
        response_class = heard_by(Heard(()), lambda *_: None)
        async with aiohttp.ClientSession(response_class=response_class) as session, session.get(url) as response:
            chunks = response.content.iter_chunked(1024)
            await anext(chunks)
            num_before = len(heard)
            go_on.set()
            await anext(chunks)
            assert len(heard) == num_before + 1
    finally:
        await runner.cleanup()


async def test_when_one_ends_the_others_are_ended_and_its_error_is_told() -> None:
    ended: list[str] = []

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("other")

    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await first_to_end(for_ever(), fail())
    assert ended == ["other"]


def test_a_phase_that_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="phase 99"):
        parse_model_view(pb.WatchModelResponse(phase=99))  # type: ignore[arg-type]


def test_a_loader_cannot_make_a_condition_that_the_api_server_refuses() -> None:
    failure = pb.ModelFailure(reason="no such reason!", message="x" * 100_000)
    view = parse_model_view(pb.WatchModelResponse(phase=pb.MODEL_PHASE_FAILED, failure=failure))
    assert view.failure is not None
    assert view.failure.reason == "Failed"
    assert len(view.failure.message) <= 1000


def test_metrics_count_resources_by_what_they_say_of_themselves() -> None:
    metrics = Metrics()
    metrics.set_resources(["True", "True", "False", "nonsense"])
    page = metrics.page().decode()
    assert 'emoe_operator_resources{ready="True"} 2.0' in page
    assert 'emoe_operator_resources{ready="Unknown"} 1.0' in page
    metrics.set_resources([])
    assert 'emoe_operator_resources{ready="True"} 0.0' in metrics.page().decode()
