"""Records a static step once for each of its shapes and runs it again from then on: one launch in place of hundreds.

All recordings share one pool of memory, for they never run at once. A recorded step reads slots and tables where they
are, so plans change what it computes and need no new recording: copies into slots wait for the steps that were launched
before the slot was freed (`transfer`'s fence), and steps wait for the copies of experts that the table names.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from emoe.worker.static_step import StepShape

log = logging.getLogger(__name__)


class CudaGraphs:
    """`Replays` on a CUDA device, for one engine."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._is_recording = True
        """Until a shape could not be: what is not recorded runs as it is."""
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    def run(self, shape: StepShape, step: Callable[[], None]) -> None:
        if shape not in self._graphs and self._is_recording:
            self._warm_up(step)
            self._record(shape, step)
        if shape in self._graphs:
            self._graphs[shape].replay()
        else:
            step()

    def _warm_up(self, step: Callable[[], None]) -> None:
        """Runs the step as it is, since libraries set themselves up at first sight of a shape, which must not be
        recorded; that it runs again harms nothing: it writes the same keys and values to the same places."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            step()
        here.wait_stream(self._stream)

    def _record(self, shape: StepShape, step: Callable[[], None]) -> None:
        began, here = time.monotonic(), torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads copy experts meanwhile, and what they call must not end the recording.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                step()
        except RuntimeError as error:
            torch.cuda.set_stream(here)  # the recording's own may still be the current one
            self._is_recording = False
            log.warning("%s cannot be recorded as a CUDA graph; no more steps will be: %s", shape, error)
        else:
            self._graphs[shape] = graph
            log.info("recorded %s as a CUDA graph in %.2f s", shape, time.monotonic() - began)
