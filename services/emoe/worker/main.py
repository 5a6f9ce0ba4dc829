"""The worker process: finds the checkpoint, prepares the engine, serves."""

from __future__ import annotations

import dataclasses
import threading

from emoe.runtime.lifecycle import service_host
from emoe.worker.checkpoint import open_checkpoint
from emoe.worker.preparing import on_a_passing_thread, prepare
from emoe.worker.sampling import Sampler, sample
from emoe.worker.serving import serve_model
from emoe.worker.settings import WorkerSettings

MAX_CALL_SECONDS = 3600.0
"""No shorter than the longest deadline that a scheduler passes on."""


async def serve(settings: WorkerSettings, *, sampler: Sampler = sample) -> None:
    """Health answers from the first moment on: alive, and ready once the engine is."""
    async with service_host(
        settings, name="worker", max_receive_bytes=settings.max_request_bytes, max_call_seconds=MAX_CALL_SECONDS
    ) as host:
        store, source = await open_checkpoint(settings)
        cut_short = threading.Event()
        try:
            parts, encoder = await on_a_passing_thread(prepare, settings, store, source, cut_short)
            await serve_model(settings, host, store, dataclasses.replace(parts, sampler=sampler), encoder)
        finally:
            # A start that is told to stop still runs on its thread, which the process waits for.
            cut_short.set()
            source.close()
            store.close()
