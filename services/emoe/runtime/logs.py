"""Log lines of a service process: text for people, JSON for collectors, both with the trace they belong to."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Literal

from opentelemetry import trace


def set_up_logging(service: str, *, level: str, log_format: Literal["text", "json"]) -> None:
    """Everything goes to stderr. Replaces the root logger's handlers, so only a process's entry point calls it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service) if log_format == "json" else TextFormatter(service))
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level.upper())


class TextFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s {service} %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        trace_id = current_trace_id()
        line = super().format(record)
        return f"{line} trace={trace_id}" if trace_id and not record.exc_info else line


class JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace_id := current_trace_id():
            line["trace_id"] = trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def current_trace_id() -> str:
    """The W3C trace id in whose span this code runs, empty outside of any."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""
