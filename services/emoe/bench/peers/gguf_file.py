"""Has the peers' interpreter write a checkpoint as GGUF."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from emoe.bench.failures import BenchmarkError
from emoe.bench.peers.places import Places

WRITE_SECONDS = 1800.0


async def make_gguf(model: Path, out: Path, places: Places) -> None:
    """BenchmarkError when it cannot be written."""
    process = await asyncio.create_subprocess_exec(
        places.python("llama", "llama.cpp"),
        *("-m", "emoe.bench.peers.write_gguf", str(model), str(out)),
        env={**os.environ, **places.own_code()},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = await asyncio.wait_for(process.communicate(), WRITE_SECONDS)
    except TimeoutError as error:
        raise BenchmarkError(f"llama.cpp: not measured: no GGUF within {WRITE_SECONDS:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise BenchmarkError(f"llama.cpp: not measured: its GGUF could not be written: {last[0]}")
