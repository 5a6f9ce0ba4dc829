"""A benchmark's child process: asked over its standard input, answers over its standard output, a JSON line each.

A figure of one engine then never holds another's memory. The child's other output goes to our standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
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
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(f"{self._name}: {answer['error']}")
        return answer


@contextlib.asynccontextmanager
async def child_process(
    module: str, options: Mapping[str, object], *, name: str, prefix: Sequence[str] = ()
) -> AsyncIterator[ChildProcess]:
    """`python -m module OPTIONS`, ended with the block. `name` is what messages call it; `prefix` is a command that
    becomes the one that follows it."""
    process = await asyncio.create_subprocess_exec(
        *(*prefix, sys.executable, "-m", module, json.dumps(options)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
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
