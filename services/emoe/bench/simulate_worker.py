"""A worker as the simulator has it: the engine's steps (`worker.engine`), with the time each takes from its costs.

A step is one token for each sequence that decodes and pieces of prompts, first come first served, up to `step_tokens`
in all; a prompt's last piece gives its first token at the step's end. What cannot change between two events is jumped
over: steps that only decode, until the next answer ends or the next prompt arrives, and full steps of one long prompt.
It knows numbers of requests, not what they are.
"""

from __future__ import annotations

import collections
import heapq
import math

from emoe.core.schedule.costs import StepCosts

IDLE = math.inf


class _Prompt:
    __slots__ = ("answer_tokens", "miss_seconds", "number", "pending_tokens", "prompt_tokens")

    def __init__(self, number: int, prompt_tokens: int, answer_tokens: int, miss_seconds: float) -> None:
        self.number = number
        self.prompt_tokens = self.pending_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.miss_seconds = miss_seconds
        """That each of its tokens waits for experts."""


class SimulatedWorker:
    """Drive it so: `give` what was sent to it, then, whenever the clock reaches `until_seconds`, `finish`."""

    __slots__ = (
        "_answers",
        "_base",
        "_context",
        "_context_tokens",
        "_ending",
        "_inbox",
        "_miss_seconds",
        "_misses",
        "_num_prompt_tokens",
        "_num_steps",
        "_prompt_token",
        "_prompts",
        "_sequence",
        "_step_tokens",
        "_ticks",
        "ended",
        "num_steps",
        "started",
        "until_seconds",
        "wrote_first",
    )

    def __init__(self, costs: StepCosts, *, num_rows: int) -> None:
        self._base = costs.base_seconds
        self._prompt_token = costs.prompt_token_seconds
        self._sequence = costs.sequence_seconds
        self._context = costs.context_token_seconds
        self._step_tokens = max(costs.step_tokens, num_rows)
        self._inbox: collections.deque[tuple[float, _Prompt]] = collections.deque()
        """With the time from which the engine has it."""
        self._prompts: collections.deque[_Prompt] = collections.deque()
        """In order of arrival."""
        self._answers: list[tuple[int, int, int, float]] = []
        """A heap of (decoding step after which it ends, number, its KV tokens then, miss seconds)."""
        self._ticks = 0
        """Steps in which sequences decoded."""
        self._context_tokens = 0
        self._misses = 0.0
        """Seconds that one token of each decoding sequence waits for absent experts."""
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._miss_seconds = 0.0
        self._ending: list[_Prompt] = []
        self.started = 0.0
        self.until_seconds = IDLE
        self.wrote_first: list[int] = []
        self.ended: list[int] = []
        self.num_steps = 0

    def give(
        self, number: int, *, prompt_tokens: int, answer_tokens: int, at_seconds: float, miss_seconds: float = 0.0
    ) -> bool:
        """The engine has it from `at_seconds` on, never before what was given earlier. -> whether `until_seconds`
        moved."""
        self._inbox.append((at_seconds, _Prompt(number, prompt_tokens, answer_tokens, miss_seconds)))
        if self.until_seconds == IDLE:
            self._begin(at_seconds)
            return True
        if len(self._inbox) == 1 and not self._prompts and self._num_steps > 1:
            return self._cut_short(at_seconds)
        return False

    def finish(self) -> None:
        """At `until_seconds`: fills `wrote_first` and `ended` with numbers of requests, and begins what comes next."""
        now, steps = self.until_seconds, self._num_steps
        self.num_steps += steps
        self.wrote_first, self.ended = [], []
        if self._answers:
            self._ticks += steps
            self._context_tokens += steps * len(self._answers)
            while self._answers and self._answers[0][0] <= self._ticks:
                _, number, tokens, miss_seconds = heapq.heappop(self._answers)
                self._context_tokens -= tokens
                self._misses -= miss_seconds
                self.ended.append(number)
            if not self._answers:
                self._misses = 0.0
        for prompt in self._ending:
            self._end_prompt(prompt)
        self._begin(now)

    def tokens_to_come(self) -> list[tuple[int, int]]:
        """(number, tokens) of what decodes."""
        return [(number, last - self._ticks) for last, number, _, _ in self._answers]

    def _end_prompt(self, prompt: _Prompt) -> None:
        self.wrote_first.append(prompt.number)
        if prompt.answer_tokens <= 1:
            self.ended.append(prompt.number)
            return
        last, kv_tokens = self._ticks + prompt.answer_tokens - 1, prompt.prompt_tokens + prompt.answer_tokens - 1
        heapq.heappush(self._answers, (last, prompt.number, kv_tokens, prompt.miss_seconds))
        self._context_tokens += prompt.prompt_tokens
        self._misses += prompt.miss_seconds

    def _begin(self, now: float) -> None:
        """The next step, or the next steps that cannot differ, from `now` on."""
        inbox, prompts = self._inbox, self._prompts
        self._ending = []
        if inbox and not prompts and not self._answers and inbox[0][0] > now:
            now = inbox[0][0]
        while inbox and inbox[0][0] <= now:
            prompts.append(inbox.popleft()[1])
        self.started = now
        self._num_prompt_tokens, self._miss_seconds = 0, 0.0
        if prompts:
            self._num_steps = self._fill(self._step_tokens - len(self._answers))
            self.until_seconds = now + self._stretch_seconds(self._num_steps)
        elif self._answers:
            self._num_steps = self._answers[0][0] - self._ticks
            self.until_seconds = now + self._stretch_seconds(self._num_steps)
            if inbox:
                self._cut_short(inbox[0][0])
        else:
            self._num_steps = 0
            self.until_seconds = IDLE

    def _fill(self, room: int) -> int:
        """Takes pieces of prompts for the next steps -> how many steps: several while one prompt fills them all."""
        prompts = self._prompts
        first = prompts[0]
        if first.pending_tokens > room:
            steps = (first.pending_tokens - 1) // room
            if self._answers:
                steps = min(steps, self._answers[0][0] - self._ticks)
            first.pending_tokens -= steps * room
            self._num_prompt_tokens = steps * room
            self._miss_seconds = steps * room * first.miss_seconds
            return steps
        while prompts and room > 0:
            first = prompts[0]
            size = min(first.pending_tokens, room)
            room -= size
            self._num_prompt_tokens += size
            self._miss_seconds += size * first.miss_seconds
            first.pending_tokens -= size
            if first.pending_tokens == 0:
                self._ending.append(prompts.popleft())
        return 1

    def _stretch_seconds(self, steps: int) -> float:
        """Of so many steps, in which each decoding sequence's context grows by a token a step."""
        decoding = len(self._answers)
        fixed = self._base + self._sequence * decoding + self._misses + self._context * self._context_tokens
        return (
            steps * fixed
            + self._context * decoding * (steps * (steps - 1) / 2)
            + self._prompt_token * self._num_prompt_tokens
            + self._miss_seconds
        )

    def _cut_short(self, at_seconds: float) -> bool:
        """Ends a stretch of decoding at the first step's end from `at_seconds` on."""
        wanted, most = at_seconds - self.started, self._num_steps
        if wanted > self._stretch_seconds(most - 1):
            return False
        steps = min(max(1, self._num_steps_within(wanted)), most)
        while steps > 1 and self._stretch_seconds(steps - 1) >= wanted:
            steps -= 1
        while steps < most and self._stretch_seconds(steps) < wanted:
            steps += 1
        self._num_steps = steps
        self.until_seconds = self.started + self._stretch_seconds(steps)
        return True

    def _num_steps_within(self, seconds: float) -> int:
        """About how many steps of a stretch of decoding pass in that time: the root of `_stretch_seconds`."""
        growth = self._context * len(self._answers) / 2
        first = self._stretch_seconds(1)
        if growth <= 1e-9 * first:
            return math.ceil(seconds / first)
        linear = first - growth
        return math.ceil((math.sqrt(linear * linear + 4 * growth * seconds) - linear) / (2 * growth))
