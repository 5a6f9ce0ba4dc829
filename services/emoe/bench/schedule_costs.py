"""A worker's step costs as a file: measured on a real engine once, read by every simulation. Knows no torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from emoe.bench.rows import Machine
from emoe.core.errors import InvalidRequestError
from emoe.core.schedule.costs import StepCosts

MEASURED = Path(__file__).with_name("costs.json")
"""Of the model that ships, on two CPU cores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredCosts:
    """`typical_error_ratio`: the median of how far off the costs are for steps that they were not fitted to."""

    model: str
    miss_policy: str
    expert_memory: str
    max_concurrency: int
    num_steps: int
    typical_error_ratio: float
    costs: StepCosts
    machine: Machine


def write_costs(measured: MeasuredCosts, path: Path) -> None:
    path.write_text(json.dumps(dataclasses.asdict(measured), indent=1) + "\n", encoding="utf-8")


def read_costs(path: Path = MEASURED) -> MeasuredCosts:
    """InvalidRequestError says what the file lacks."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        costs, machine = StepCosts(**stored.pop("costs")), Machine(**stored.pop("machine"))
        measured = MeasuredCosts(**stored, costs=costs, machine=machine)
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequestError(f"{path} holds no costs of `emoe bench costs`: {error}") from error
    return _checked(path, measured)


def _checked(path: Path, measured: MeasuredCosts) -> MeasuredCosts:
    for field in dataclasses.fields(StepCosts):
        value = getattr(measured.costs, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
            raise InvalidRequestError(f"{path}: costs.{field.name} must be a number from 0 up, not {value!r}")
    if measured.costs.step_seconds(num_prompt_tokens=1, num_decoding=1, num_context_tokens=1) <= 0:
        raise InvalidRequestError(f"{path}: a step must take some time; all of its costs are 0")
    if not isinstance(measured.costs.step_tokens, int) or measured.costs.step_tokens < 1:
        raise InvalidRequestError(f"{path}: costs.step_tokens must be a count from 1 up")
    return measured
