"""The processes of a contest: kept waiting between turns where memory holds them all, else started anew for each.

Under a memory cap each is started anew in a memory cgroup of its own, its files just dropped from the page cache: a
page belongs to the cgroup that read it first, and one that another had read would be memory beyond the cap.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence

from emoe.bench.children import ChildProcess, child_process
from emoe.bench.contest_io import drop_pages, end_process, free_memory_bytes
from emoe.bench.contest_records import ContestSettings
from emoe.bench.contestants import Contestant, Model
from emoe.bench.failures import BenchmarkError
from emoe.bench.memory_cgroup import memory_cgroup

MEMORY_SHARE = 0.7
"""Of the memory that is free, what processes that wait may take."""
MEBIBYTE = 1024 * 1024


class Processes:
    """Kept processes end with `kept`."""

    def __init__(self, model: Model, settings: ContestSettings, *, cap_bytes: int | None) -> None:
        self._model = model
        self._settings = settings
        self._cap_bytes = cap_bytes
        self._kept: dict[str, ChildProcess] = {}
        self._stack: contextlib.AsyncExitStack | None = None

    @contextlib.asynccontextmanager
    async def kept(self, contestants: Sequence[Contestant]) -> AsyncIterator[str | None]:
        """Gives a line that says why processes do not wait; None where they do."""
        if (line := self._why_anew(contestants)) is not None:
            yield line
            return
        async with contextlib.AsyncExitStack() as stack:
            self._stack = stack
            yield None

    def _why_anew(self, contestants: Sequence[Contestant]) -> str | None:
        if self._cap_bytes is not None:
            cap = f"{self._cap_bytes / MEBIBYTE:.0f} MiB"
            return f"each process is started anew for its turn, in a memory cgroup of {cap}, page cache included"
        wanted, free = sum(each.likely_bytes for each in contestants), free_memory_bytes()
        if wanted <= MEMORY_SHARE * free:
            return None
        return f"each process is started anew for its turn: {wanted / 1e9:.1f} GB for all, {free / 1e9:.1f} GB free"

    @property
    def wait(self) -> bool:
        return self._stack is not None

    @contextlib.asynccontextmanager
    async def opened(self, contestant: Contestant) -> AsyncIterator[ChildProcess]:
        """Its process for one turn. BenchmarkError says so where the cap killed it."""
        if (kept := self._kept.get(contestant.name)) is not None:
            yield kept
        elif self._stack is not None:
            child = await self._stack.enter_async_context(self._started(contestant))
            self._kept[contestant.name] = child
            yield child
        elif self._cap_bytes is None:
            async with self._started(contestant) as child:
                yield child
        else:
            async with self._capped(contestant, self._cap_bytes) as child:
                yield child

    @contextlib.asynccontextmanager
    async def reference(self) -> AsyncIterator[ChildProcess]:
        """The model in float32; no cap is on it."""
        options = self._options({"kind": "float32"})
        async with _child("emoe.bench.contestant_child", options, name="the float32 reference") as child:
            yield child

    @contextlib.asynccontextmanager
    async def _capped(self, contestant: Contestant, cap_bytes: int) -> AsyncIterator[ChildProcess]:
        drop_pages(contestant.files)
        with memory_cgroup(cap_bytes) as cgroup:
            try:
                async with self._started(contestant, prefix=cgroup.prefix) as child:
                    yield child
            except BenchmarkError as error:
                if not cgroup.num_kills:
                    raise
                raise BenchmarkError(f"killed at the cap of {cap_bytes / MEBIBYTE:.0f} MiB") from error

    def _started(
        self, contestant: Contestant, *, prefix: Sequence[str] = ()
    ) -> contextlib.AbstractAsyncContextManager[ChildProcess]:
        return _child(
            contestant.module,
            self._options(contestant.options),
            name=contestant.name,
            prefix=prefix,
            python=contestant.python or sys.executable,
            environment=contestant.environment,
        )

    def _options(self, own: Mapping[str, object]) -> dict[str, object]:
        settings = self._settings
        return {
            "model": str(self._model.folder),
            "threads": settings.threads,
            "max_context": settings.prompt_tokens + settings.new_tokens,
            "max_concurrency": max(settings.batches),
            **own,
        }


@contextlib.asynccontextmanager
async def _child(
    module: str,
    options: Mapping[str, object],
    *,
    name: str,
    prefix: Sequence[str] = (),
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[ChildProcess]:
    """Out of Ctrl-C's reach, and ended at once, in the middle of an answer too, when the run is broken off."""
    async with child_process(
        module, options, name=name, prefix=prefix, python=python, environment=environment, own_session=True
    ) as child:
        whole = False
        try:
            yield child
            whole = True
        finally:
            if not whole:
                end_process(child.pid)
