"""Telling who was cancelled: this task, or the call that it waits for.

grpc.aio raises CancelledError in both cases; only the first may pass.
"""

from __future__ import annotations

import asyncio


def this_task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
