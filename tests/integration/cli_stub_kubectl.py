"""A kubectl by script: answers `get`, forwards to nothing, and writes down what it was asked and how it ended.

KUBECTL_SCRIPT is a JSON object: `get` and `forward`, each with `stdout`, `stderr`, `status` and, for one that stays,
`hangs`. KUBECTL_LOG is the file to write to, a JSON object a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType


def write(**fields: object) -> None:
    with Path(os.environ["KUBECTL_LOG"]).open("a") as log:
        log.write(json.dumps(fields) + "\n")


def end(number: int, _frame: FrameType | None) -> None:
    write(signal=signal.Signals(number).name)
    sys.exit(0)


signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
write(arguments=sys.argv[1:], pid=os.getpid())
script = json.loads(os.environ["KUBECTL_SCRIPT"])["get" if sys.argv[1] == "get" else "forward"]
print(script.get("stdout", ""), end="", flush=True)
print(script.get("stderr", ""), end="", file=sys.stderr, flush=True)
while script.get("hangs"):
    signal.pause()
sys.exit(script.get("status", 0))
