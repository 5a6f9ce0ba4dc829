"""Small parts of the runtime: status of errors, log lines, trace context, announcement, settings."""

from __future__ import annotations

import json
import logging
import sys

import grpc
import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from pydantic import ValidationError

from emoe.core import errors
from emoe.runtime.errors import STATUS_OF, status_of
from emoe.runtime.logs import JsonFormatter, TextFormatter
from emoe.runtime.process import announce
from emoe.runtime.settings import ServiceSettings
from emoe.runtime.telemetry import Telemetry, incoming_context, outgoing_metadata

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_every_error_raised_on_purpose_has_a_status() -> None:
    on_purpose = {kind for kind in errors.EmoeError.__subclasses__() if kind.__module__ == errors.__name__}
    assert set(STATUS_OF) == on_purpose


def test_subclass_of_a_known_error_has_its_status() -> None:
    class Truncated(errors.CheckpointError):
        pass

    status = status_of(Truncated("layer 3 of model-1.safetensors is cut short"))

    assert status == (grpc.StatusCode.DATA_LOSS, "layer 3 of model-1.safetensors is cut short", ())


def test_error_not_raised_on_purpose_has_no_status() -> None:
    assert status_of(KeyError("secret")) is None


def record(message: str, **fields: object) -> logging.LogRecord:
    return logging.LogRecord("emoe.x", logging.INFO, __file__, 1, message, (), fields.get("exc_info"))  # type: ignore[arg-type]


def test_json_log_line_carries_trace_and_exception() -> None:
    try:
        int("boom")
    except ValueError:
        failed = record("it\nfailed", exc_info=sys.exc_info())
    token = otel_context.attach(incoming_context([("traceparent", TRACEPARENT)]))
    try:
        line = JsonFormatter("worker").format(failed)
    finally:
        otel_context.detach(token)

    fields = json.loads(line)
    assert "\n" not in line
    assert fields["service"] == "worker"
    assert fields["message"] == "it\nfailed"
    assert fields["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert "ValueError: invalid literal" in fields["exception"]


def test_log_line_outside_of_a_trace_names_none() -> None:
    assert "trace" not in TextFormatter("worker").format(record("hello"))
    assert "trace_id" not in json.loads(JsonFormatter("worker").format(record("hello")))


def test_trace_context_is_passed_on_even_when_nothing_is_recorded() -> None:
    tracer = Telemetry(trace.NoOpTracerProvider()).tracer
    parent = incoming_context([("traceparent", TRACEPARENT), ("user-agent", "x")])
    span = tracer.start_span("hop", context=parent)
    with trace.use_span(span):
        assert outgoing_metadata() == (("traceparent", TRACEPARENT),)
    assert outgoing_metadata() == ()


@pytest.mark.parametrize("header", ["", "00-zz-xx-01", "garbage", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_malformed_trace_context_is_ignored(header: str) -> None:
    context = incoming_context([("traceparent", header)])
    assert not trace.get_current_span(context).get_span_context().is_valid


def test_announcement_replaces_the_last_one_whole(tmp_path) -> None:
    path = tmp_path / "worker.json"
    for port in (1, 2):
        announce(path, service="worker", address=f"127.0.0.1:{port}", health_address="127.0.0.1:9")

    assert json.loads(path.read_text())["address"] == "127.0.0.1:2"
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_settings_are_refused_and_the_environment_is_read(monkeypatch) -> None:
    monkeypatch.setenv("EMOE_DRAIN_SECONDS", "3.5")
    assert ServiceSettings().drain_seconds == 3.5
    with pytest.raises(ValidationError):
        ServiceSettings(lissten="127.0.0.1:1")
    with pytest.raises(ValidationError):
        ServiceSettings(drain_seconds=-1)
