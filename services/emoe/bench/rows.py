"""What the benchmarks give: a row a measurement, and the report that says where and how it was taken.

Plain values, for a table or JSON. Rates and times are medians over the repeats; `samples` has every repeat's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """`load_average` is the last minute's when the benchmark began: above 0, something else was running."""

    cpu: str
    num_cpus: int
    threads: int
    load_average: float
    python: str
    torch: str
    transformers: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """One batch of answers: until every one has its first token, and until all are whole."""

    prefill_seconds: float
    total_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineRow:
    """The ratios are to the better of transformers' rows of the same batch; None in those themselves."""

    engine: str
    mode: str
    batch: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    total_tokens_per_second: float
    """New tokens over all of the time, prefill too."""
    samples: tuple[Timing, ...]
    prefill_ratio: float | None = None
    decode_ratio: float | None = None
    total_ratio: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContestSample:
    """One turn: until every prompt had its first token, and from there on. `bytes_read`: from storage.
    `processor_seconds`: of all threads; what is left of the threads' time was spent waiting."""

    prefill_seconds: float
    decode_seconds: float
    num_decoded_tokens: int
    bytes_needed: int | None
    bytes_copied: int | None
    bytes_read: int | None = None
    processor_seconds: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContestRow:
    """A contestant at one batch; what it cannot tell is None, and a line of the report says why.

    `peak_anon_bytes`: of its process's whole life, loading too. `bytes_read`: what storage delivered to it in its first
    turn, its files just dropped from the page cache; under a memory cap, in a measured turn. `bytes_needed`: of the
    different experts that a turn routes to. `bytes_copied`: into slots, in a turn. `max_logit_difference`: from the
    same model in float32, after a prompt. `memory_cap_bytes`: of its cgroup, page cache included.
    """

    engine: str
    model: str
    mode: str
    budget_ratio: float | None
    batch: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    ttft_seconds: float
    peak_anon_bytes: int
    bytes_read: int | None
    bytes_needed: int | None
    bytes_copied: int | None
    max_logit_difference: float | None
    samples: tuple[ContestSample, ...]
    memory_cap_bytes: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Anonymous memory of a process of its own. `overhead_bytes` is what the peak has beside all that is named here."""

    engine: str
    budget: str
    peak_bytes: int
    load_peak_bytes: int
    """Before the first prompt."""
    after_bytes: int
    bare_bytes: int
    """Of a process that has only imported the libraries."""
    base_bytes: int
    slot_bytes: int
    """The arena; for transformers, all experts."""
    kv_bytes: int
    overhead_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadRow:
    """One cold token. `device_bytes`: what storage delivered, in whole pages; None where the system does not tell."""

    token: int
    num_experts: int
    needed_bytes: int
    asked_bytes: int
    device_bytes: int | None
    asked_ratio: float
    device_ratio: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSample:
    """One closed loop: every client sends its next request when the last one is answered."""

    num_tokens: int
    wall_seconds: float
    ttft_seconds: tuple[float, ...]
    """Of each request."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceRow:
    """`path`: through the scheduler, straight to the worker, or the engine in its own process. Ratios are to the
    last."""

    path: str
    clients: int
    tokens_per_second: float
    ttft_p50_seconds: float
    tokens_ratio: float | None
    ttft_ratio: float | None
    samples: tuple[LoopSample, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanningRow:
    """One call of a step, on one thread. Processor times leave out what others took of the core meanwhile."""

    shape: str
    num_layers: int
    num_experts: int
    top_k: int
    step: str
    p50_seconds: float
    p99_seconds: float
    processor_p50_seconds: float
    processor_p99_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecisionRow:
    """One request let in and placed, with all changes of queue and plans that go with it. `num_running` on each worker;
    processor times leave out what others took of the core meanwhile."""

    policy: str
    num_queued: int
    num_workers: int
    num_running: int
    decision_mean_seconds: float
    decision_p50_seconds: float
    decision_p99_seconds: float
    processor_mean_seconds: float
    processor_p99_seconds: float
    bytes_per_queued: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One claim of the paper: emoe with few experts resident beside all of them resident, in `unit`, at one memory cap.

    `ours_ratio`: ours to all resident's; `paper_ratio`: the same as the paper gives it. `ended_by`: what kept a larger
    one of ours away. A sample is a round's figures, all resident's and ours.
    """

    claim: str
    mode: str
    budget_ratio: float
    unit: str
    all_resident: float | None
    ours: float | None
    ours_ratio: float | None
    paper_ratio: float | None
    ended_by: str | None
    samples: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefreshSample:
    """One turn of a system. `nll`: the sum over the answers' tokens, in nats; `processor_seconds`: of each service."""

    num_prompt_tokens: int
    num_tokens: int
    wall_seconds: float
    ttft_seconds: tuple[float, ...]
    nll: float
    num_plans: int
    num_loaded_bytes: int
    num_expert_hits: int
    num_expert_choices: int
    processor_seconds: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefreshRow:
    """Speed and perplexity of the same requests; plans and loaded bytes are of all turns together. Ratios of speed are
    medians over rounds of the ratio to the all-resident system's turn in the same round; `processor_ratio` is that of
    tokens for each second of processor time of all services, which leaves out what others took of the machine."""

    variant: str
    mode: str
    resident: str
    clients: int
    tokens_per_second: float
    tokens_ratio: float
    processor_ratio: float
    ttft_p50_seconds: float
    num_plans: int
    loaded_bytes: int
    hit_ratio: float
    perplexity: float
    perplexity_ratio: float
    samples: tuple[RefreshSample, ...]


Row = EngineRow | ContestRow | MemoryRow | ReadRow | ServiceRow | PlanningRow | DecisionRow | ClaimRow | RefreshRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """`settings`: the command's options as they were used, repeats among them."""

    benchmark: str
    model: str
    family: str
    machine: Machine
    settings: Mapping[str, object]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    """What was not measured, and why; and what a reader must know."""
