"""Service-level objectives of one request. Zero or less is refused; None means no such target."""

from __future__ import annotations

import dataclasses
import math

from emoe.core.errors import InvalidRequestError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slo:
    """Targets in seconds: to the first token, per later token, and from arrival to the last token."""

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    end_to_end_seconds: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InvalidRequestError(f"slo.{field.name} must be a positive number of seconds, not {value}")
