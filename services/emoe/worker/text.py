"""From tokens to text as they come: whole characters only, and never a part of a stop string.

A tokenizer may need several tokens for one character, and joins words differently in context; so each sequence keeps
a window of undecided tokens and gives out the part of its text that later tokens cannot change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
MAX_UNDECIDED_TOKENS = 16
"""A byte that never completes a character is given out as it is after this many tokens."""


class Decodes(Protocol):
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...


class TextStream:
    """One answer. `push` tokens, take the text that became final; `stopped` once a stop string appeared."""

    def __init__(self, tokenizer: Decodes, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._context: list[int] = []
        self._undecided: list[int] = []
        self._held = ""
        self.stopped = False

    def push_all(self, token_ids: Sequence[int]) -> tuple[int, str]:
        """How many tokens it took, all of them but those behind a stop string, and the text that became final.

        Without stop strings they are decoded together, unless the last ends inside a character: those before it are
        not held back with it."""
        if len(token_ids) > 1 and not self._stop:
            text = self._decide(token_ids, patience_tokens=None)
            if text is not None:
                return len(token_ids), text
            del self._undecided[-len(token_ids) :]
        text = ""
        for place, token_id in enumerate(token_ids, start=1):
            text += self.push(token_id)
            if self.stopped:
                return place, text
        return len(token_ids), text

    def push(self, token_id: int) -> str:
        return self._decide([token_id], patience_tokens=MAX_UNDECIDED_TOKENS) or ""

    def _decide(self, token_ids: Sequence[int], *, patience_tokens: int | None) -> str | None:
        """None: nothing is final yet, and the tokens wait."""
        self._undecided.extend(token_ids)
        before = self._decode(self._context)
        after = self._decode(self._context + self._undecided)
        if after.endswith(REPLACEMENT) and (patience_tokens is None or len(self._undecided) < patience_tokens):
            return None
        # Tokens without text of their own, such as special ones, must not hide that others stand before the next word.
        silent = after == before
        self._context = (self._context if silent else []) + self._undecided
        self._context, self._undecided = self._context[-MAX_UNDECIDED_TOKENS:], []
        return self._release(after[len(before) :], final=False)

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        rest = (
            self._decode(self._context + self._undecided)[len(self._decode(self._context)) :] if self._undecided else ""
        )
        self._undecided = []
        return self._release(rest, final=True)

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True) if token_ids else ""

    def _release(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = 0 if final else _longest_beginning(self._held, self._stop)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out


def _longest_beginning(text: str, stop: tuple[str, ...]) -> int:
    """How many last characters of `text` may be the beginning of a stop string."""
    return max(
        (n for s in stop for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n])),
        default=0,
    )
