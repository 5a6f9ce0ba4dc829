"""How a command fails: one line on stderr, an object on stdout with --json, and exit status 1."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator

from emoe.cli.failures import CommandError, RemoteError
from emoe.core.errors import EmoeError


@contextlib.contextmanager
def reported_errors(*, as_json: bool = False) -> Iterator[None]:
    """Turns the errors that are raised on purpose into what the user sees. SystemExit(1) after one."""
    try:
        yield
    except (CommandError, EmoeError) as error:
        if as_json:
            print(json.dumps({"event": "error", "error": describe_error(error)}), flush=True)
        print(f"emoe: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None


def describe_error(error: CommandError | EmoeError) -> dict[str, object]:
    if isinstance(error, RemoteError):
        return {"message": str(error), "code": error.code, "retry_after_seconds": error.retry_after_seconds}
    return {"message": str(error), "code": None, "retry_after_seconds": None}
