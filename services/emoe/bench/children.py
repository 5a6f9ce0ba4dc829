"""A benchmark's child process: asked over its standard input, answers over its standard output, a JSON line each.

A figure of one engine then never holds another's memory. The child's other output goes to our standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from emoe.bench.failures import BenchmarkError

ASK_SECONDS = 1800.0
END_SECONDS = 10.0
MAX_LINE_BYTES = 16 * 1024 * 1024


class ChildProcess:
    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self.pid = process.pid
        self._process = process
        self._name = name

    async def ask(self, **question: object) -> dict[str, Any]:
        """The child's answer; BenchmarkError if it fails, dies or says nothing for `ASK_SECONDS`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await self._process.stdin.drain()
                line = await self._process.stdout.readline()
        except (TimeoutError, ConnectionError) as error:
            raise BenchmarkError(f"the process of {self._name} does not answer: {error!r}") from error
        if not line:
            raise BenchmarkError(f"the process of {self._name} ended before its answer; see its lines above")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise BenchmarkError(f"the process of {self._name} wrote no answer but {line[:80]!r}") from error
        if "error" in answer:
            raise BenchmarkError(f"{self._name}: {answer['error']}")
        return answer


@contextlib.asynccontextmanager
async def child_process(
    module: str,
    options: Mapping[str, object],
    *,
    name: str,
    prefix: Sequence[str] = (),
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    own_session: bool = False,
) -> AsyncIterator[ChildProcess]:
    """`python -m module OPTIONS`, ended with the block. `name` is what messages call it; `prefix` is a command that
    becomes the one that follows it; `environment` is added to ours. A child in its own session gets no Ctrl-C."""
    process = await asyncio.create_subprocess_exec(
        *(*prefix, python, "-m", module, json.dumps(options)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
        env=None if environment is None else {**os.environ, **environment},
        start_new_session=own_session,
    )
    try:
        yield ChildProcess(process, name)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
