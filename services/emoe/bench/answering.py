"""The child's side of `children`: one answer a question, until standard input ends."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from emoe.core.errors import EmoeError
from emoe.runtime.process import die_with_parent


def own_options() -> dict[str, Any]:
    """Also ties this process's life to its parent's."""
    die_with_parent(None)
    options: dict[str, Any] = json.loads(sys.argv[1])
    return options


def answer_questions(answer: Callable[..., dict[str, object]]) -> None:
    """Libraries may print: what they write to standard output goes to standard error instead."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin:
            try:
                reply = answer(**json.loads(line))
            except EmoeError as error:
                reply = {"error": str(error)}
            print(json.dumps(reply), file=out, flush=True)
