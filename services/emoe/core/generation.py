"""What a client asks of one generation, and what each piece of the answer says."""

from __future__ import annotations

import dataclasses
import enum
import math

from emoe.core.errors import InvalidRequestError

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_LOGPROBS = 20


class FinishReason(enum.Enum):
    STOP = "stop"
    """The model ended its answer, or a stop string appeared."""
    LENGTH = "length"
    """`max_tokens` or the context was used up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 leave all tokens in. The same seed, prompt and experts give
    the same answer; without a seed the worker draws one."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    num_logprobs: int | None = None
    """None: none. 0: the chosen token's. n: also the n best tokens'."""
    ignore_eos: bool = False
    """The answer goes on to `max_tokens` whatever the model says: for measurements."""

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 1, f"sampling.max_tokens must be at least 1, not {self.max_tokens}")
        _check(
            math.isfinite(self.temperature) and 0 <= self.temperature <= 100,
            f"sampling.temperature must lie in 0..100, not {self.temperature}",
        )
        _check(0 < self.top_p <= 1, f"sampling.top_p must lie in (0, 1], not {self.top_p}")
        _check(self.top_k >= 0, f"sampling.top_k must be 0 (off) or more, not {self.top_k}")
        _check(len(self.stop) <= MAX_STOP_STRINGS, f"sampling.stop takes at most {MAX_STOP_STRINGS} strings")
        _check(
            all(0 < len(text) <= MAX_STOP_CHARACTERS for text in self.stop),
            f"every sampling.stop string must have 1 to {MAX_STOP_CHARACTERS} characters",
        )
        _check(
            self.num_logprobs is None or 0 <= self.num_logprobs <= MAX_LOGPROBS,
            f"sampling.num_logprobs must lie in 0..{MAX_LOGPROBS}, not {self.num_logprobs}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    token_id: int
    text: str
    logprob: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    num_prompt_tokens: int
    num_completion_tokens: int
    num_expert_hits: int
    """Token-expert choices of the router that were resident when the layer ran."""
    num_expert_choices: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """One step of an answer. The last has a finish reason and the usage; text may lag behind tokens (UTF-8, stops)."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    """For each token id: the chosen token first, then the best ones."""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise InvalidRequestError(message)
