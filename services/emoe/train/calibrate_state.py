"""Where a calibration's training stands: kept beside its result, so that the same command goes on after any end.

The state is replaced whole; the log has a line for each step. Both belong to one set of options, and are refused with
another.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import torch

from emoe.core.errors import CheckpointError

FORMAT = "emoe calibration state 1"


@dataclasses.dataclass(kw_only=True)
class Progress:
    """`seconds`: spent in steps, over all runs. `loss`: smoothed, in nats; NaN before the first step."""

    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    first_loss: float = float("nan")


class TrainingState:
    """`signature` names weights and options: what is kept under another is another training's."""

    def __init__(self, output: Path, *, signature: str) -> None:
        self.path = output.with_name(f"{output.name}.state")
        self.log = output.with_name(f"{output.name}.loss.jsonl")
        self._signature = signature

    def read(self) -> dict[str, Any] | None:
        """None where there is none; CheckpointError for another training's, or one that is damaged."""
        try:
            state: Any = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error}); remove it to begin anew") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(f"{self.path}: it is no state of this version; remove it to begin anew")
        if state["signature"] != self._signature:
            raise CheckpointError(
                f"{self.path}: a calibration was begun there with other options or weights; give the same to go on, "
                "or remove it to begin anew"
            )
        self._cut_log(int(state["progress"]["num_steps"]))
        return state

    def write(self, progress: Progress, **parts: Any) -> None:
        partial = self.path.with_name(f".{self.path.name}.part")
        state = {"format": FORMAT, "signature": self._signature, "progress": dataclasses.asdict(progress), **parts}
        torch.save(state, partial)
        partial.replace(self.path)

    def note(self, line: dict[str, float]) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps({name: round(value, 6) for name, value in line.items()}) + "\n")

    def begin(self) -> None:
        self.log.unlink(missing_ok=True)

    def remove(self) -> None:
        """Once there is a result; the log stays."""
        self.path.unlink(missing_ok=True)

    def _cut_log(self, num_steps: int) -> None:
        """Steps that were taken after the state was kept are taken again."""
        if self.log.exists():
            kept = self.log.read_text(encoding="utf-8").splitlines(keepends=True)[:num_steps]
            self.log.write_text("".join(kept), encoding="utf-8")
