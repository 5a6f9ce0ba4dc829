"""`python -m emoe.bench.sizing MODEL --limit 1GiB --limit 2GiB`: is what expert memory auto leaves free enough?

A real worker process a limit, in a memory cgroup of its own (its owner's rights: root), that sizes its own slots and
then answers prompts as long as they may be, as many at once as it takes, and others of odd lengths. A line of JSON
each: what the worker measured, what it held at most, and how near to the limit that came.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import random
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from emoe.bench.anonymous import anonymous_bytes, watched
from emoe.bench.failures import BenchmarkError
from emoe.bench.memory_cgroup import memory_cgroup
from emoe.bench.prompts import vocab_size_of
from emoe.core.memory import parse_memory
from emoe.runtime.channels import open_channel
from emoe.store.store import ExpertStore
from emoe.v1 import generation_pb2 as pb
from emoe.v1 import worker_pb2, worker_pb2_grpc

START_SECONDS = 600.0
CALL_SECONDS = 1200.0
NEW_TOKENS = 8
MIB = 2**20
_SIZING = re.compile(r"expert_memory auto: (.*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizingSettings:
    model: Path
    max_context: int = 2048
    max_concurrency: int = 8
    miss_policy: str = "reroute"
    threads: int = 1
    odd_rounds: int = 2
    """Of prompts of odd lengths: each length compiles kernels of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizedWorker:
    """One limit's row. `said`: the worker's own account, or its refusal. `num_answers` 0: it did not start."""

    limit_bytes: int
    said: str
    slots: int = 0
    expert_bytes: int = 0
    num_answers: int = 0
    num_failed: int = 0
    peak_anonymous_bytes: int = 0
    rest_anonymous_bytes: int = 0
    num_kills: int = 0

    @property
    def headroom_bytes(self) -> int:
        return self.limit_bytes - self.peak_anonymous_bytes


async def measure_sizing(settings: SizingSettings, limit_bytes: int) -> SizedWorker:
    """BenchmarkError where no cgroup can be made."""
    with tempfile.TemporaryDirectory() as place, memory_cgroup(limit_bytes) as group:
        folder = Path(place)
        log_path = folder / "worker.log"
        async with _worker(settings, folder, log_path, group.prefix) as process:
            channel = await _ready(process, folder / "announce.json")
            if channel is None:
                said = log_path.read_text().strip().splitlines()
                return SizedWorker(limit_bytes=limit_bytes, said=said[-1] if said else "", num_kills=group.num_kills)
            async with open_channel(channel) as connection, watched(process.pid) as watch:
                row = await _answer(_stub(connection), settings, limit_bytes)
                return dataclasses.replace(
                    row,
                    said=_SIZING.findall(log_path.read_text())[-1],
                    peak_anonymous_bytes=watch.peak_bytes,
                    rest_anonymous_bytes=anonymous_bytes(process.pid),
                    num_kills=group.num_kills,
                )


async def _answer(
    stub: worker_pb2_grpc.WorkerServiceAsyncStub, settings: SizingSettings, limit_bytes: int
) -> SizedWorker:
    state = (await stub.GetState(worker_pb2.GetStateRequest(), timeout=CALL_SECONDS)).state
    done = [is_whole for prompts in _rounds(settings) for is_whole in await _ask_all(stub, prompts)]
    return SizedWorker(
        limit_bytes=limit_bytes,
        said="",
        slots=state.num_slots,
        expert_bytes=state.num_slots * state.slot_bytes,
        num_answers=sum(done),
        num_failed=len(done) - sum(done),
    )


def _rounds(settings: SizingSettings) -> list[list[list[int]]]:
    """The longest prompts, all at once; odd ones; the longest again, in a process that has seen other shapes."""
    rng, longest = random.Random(7), settings.max_context - NEW_TOKENS
    with ExpertStore.open(settings.model) as store:
        vocab_size = vocab_size_of(store)
    lengths = [[longest] * settings.max_concurrency]
    lengths += [[rng.randint(1, longest) for _ in range(settings.max_concurrency)] for _ in range(settings.odd_rounds)]
    lengths += [[longest] * settings.max_concurrency]
    return [[[rng.randrange(vocab_size) for _ in range(length)] for length in row] for row in lengths]


async def _ask_all(stub: worker_pb2_grpc.WorkerServiceAsyncStub, prompts: list[list[int]]) -> list[bool]:
    return list(await asyncio.gather(*(_ask(stub, prompt) for prompt in prompts)))


async def _ask(stub: worker_pb2_grpc.WorkerServiceAsyncStub, prompt: list[int]) -> bool:
    """Whether the answer came whole."""
    sampling = pb.Sampling(max_tokens=NEW_TOKENS, ignore_eos=True)
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
    try:
        return [message async for message in stub.Generate(request, timeout=CALL_SECONDS)] != []
    except grpc.aio.AioRpcError as error:
        print(f"an answer failed: {error.code().name}: {error.details()}", file=sys.stderr)
        return False


async def _ready(process: asyncio.subprocess.Process, announce: Path) -> str | None:
    """The worker's address once it serves; None where it ended instead."""
    async with asyncio.timeout(START_SECONDS):
        while process.returncode is None:
            if (address := _announced(announce)) is not None:
                async with open_channel(address) as channel:
                    stub = _stub(channel)
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        if (await stub.GetState(worker_pb2.GetStateRequest(), timeout=5)).state.ready:
                            return address
            await asyncio.sleep(0.1)
    return None


def _stub(channel: grpc.aio.Channel) -> worker_pb2_grpc.WorkerServiceAsyncStub:
    return worker_pb2_grpc.WorkerServiceStub(channel)


def _announced(path: Path) -> str | None:
    return str(json.loads(path.read_text())["address"]) if path.exists() else None


@contextlib.asynccontextmanager
async def _worker(
    settings: SizingSettings, folder: Path, log_path: Path, prefix: tuple[str, ...]
) -> AsyncIterator[asyncio.subprocess.Process]:
    options = {
        "model": settings.model,
        "expert-memory": "auto",
        "max-context": settings.max_context,
        "max-concurrency": settings.max_concurrency,
        "miss-policy": settings.miss_policy,
        "threads": settings.threads,
        "device": "cpu",
        "drain-seconds": 0,
        "announce-file": folder / "announce.json",
    }
    command = (*prefix, sys.executable, "-m", "emoe.cli.main", "serve", "worker")
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, *(f"--{name}={value}" for name, value in options.items()), stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m emoe.bench.sizing", description=__doc__)
    parser.add_argument("model", type=Path, help="A checkpoint's folder, with a tokenizer.")
    parser.add_argument("--limit", action="append", required=True, help="Of memory, such as 1GiB; may be given again.")
    parser.add_argument("--max-context", type=int, default=2048)
    parser.add_argument("--max-concurrency", type=int, default=8)
    parser.add_argument("--miss-policy", choices=["reroute", "load"], default="reroute")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--odd-rounds", type=int, default=2, help="Of prompts of odd lengths.")
    given = vars(parser.parse_args())
    limits = [parse_memory(text, total_bytes=0) for text in given.pop("limit")]
    try:
        for limit_bytes in limits:
            row = asyncio.run(measure_sizing(SizingSettings(**given), limit_bytes))
            print(json.dumps(dataclasses.asdict(row) | {"headroom_bytes": row.headroom_bytes}), flush=True)
    except BenchmarkError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
