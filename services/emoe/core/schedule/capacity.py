"""What the workers can do, and what of it the running requests still take: both in tokens of prompts.

A worker has one kind of time. A prompt's token takes `prompt_token_seconds` of it; an answer's token takes a step,
which it shares with all sequences that the worker runs: where every one is taken, each pays its part.
"""

from __future__ import annotations

import numpy as np

from emoe.core.schedule.buckets import Capacity
from emoe.core.schedule.cluster import Cluster
from emoe.core.schedule.request import QueuedRequest
from emoe.core.schedule.table import FloatArray

LEAST_SECONDS = 1e-9
"""Of a prompt's token: a worker that reports less is not endless."""


def answer_token_weight(cluster: Cluster) -> float:
    """Tokens of prompts that a worker could do in the time that a token of an answer takes, on the mean of the workers,
    of which there must be one."""
    table = cluster.table
    return float((table.full_step / (table.rows * _prompt_seconds(cluster))).mean())


def work_tokens(request: QueuedRequest, answer_weight: float) -> float:
    """Of a request that waits."""
    return request.num_prompt_tokens + answer_weight * request.num_expected_tokens


def read_capacity(cluster: Cluster, answer_weight: float, *, ratio: float) -> Capacity:
    """`ratio`: of what all could do with every sequence always taken, what is counted on."""
    num_running = max(1, cluster.num_running)
    step = max(LEAST_SECONDS, float(cluster.table.full_step.mean()))
    return Capacity(
        tokens_per_second=ratio * float((1.0 / _prompt_seconds(cluster)).sum()),
        busy_tokens=cluster.num_prompt_tokens,
        answering_tokens=answer_weight * cluster.num_answer_tokens,
        answering_seconds=max(step, step * cluster.num_answer_tokens / num_running),
    )


def _prompt_seconds(cluster: Cluster) -> FloatArray:
    seconds: FloatArray = np.maximum(cluster.table.prompt_seconds, LEAST_SECONDS)
    return seconds
