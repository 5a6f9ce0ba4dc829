"""What a step of a worker takes, as a worker measured it: the scheduler's forecasts and the simulator stand on it.

eMoE's c (section 4.4) is one mean a token; here a step has a fixed part and one for each kind of token in it, since a
prompt's token costs a fraction of a decoded one.
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepCosts:
    """Seconds; `step_tokens` is the most tokens of one step (decoding sequences and pieces of prompts together)."""

    base_seconds: float
    prompt_token_seconds: float
    sequence_seconds: float
    """For each sequence that decodes."""
    context_token_seconds: float = 0.0
    """For each token of context that a decoding sequence attends to."""
    missed_token_seconds: float = 0.0
    """Exact mode: what a token waits whose experts are all absent; 0 where it is rerouted."""
    step_tokens: int = 2048

    def step_seconds(self, *, num_prompt_tokens: int, num_decoding: int, num_context_tokens: int) -> float:
        return (
            self.base_seconds
            + self.prompt_token_seconds * num_prompt_tokens
            + self.sequence_seconds * num_decoding
            + self.context_token_seconds * num_context_tokens
        )

    def prefill_seconds(self, num_prompt_tokens: int, *, num_decoding: int = 0, num_context_tokens: int = 0) -> float:
        """Of so many prompt tokens in as few steps as they fit, beside sequences that decode."""
        num_steps = math.ceil(num_prompt_tokens / max(1, self.step_tokens - num_decoding))
        alone = self.step_seconds(num_prompt_tokens=0, num_decoding=num_decoding, num_context_tokens=num_context_tokens)
        return num_steps * alone + self.prompt_token_seconds * num_prompt_tokens


FIRST_GUESS = StepCosts(base_seconds=0.01, prompt_token_seconds=1e-4, sequence_seconds=1e-3)
"""Before a worker has measured: the order of a small model on two cores."""
