"""What a service writes once its ports are bound, so that whoever started it learns them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Announcement:
    service: str
    pid: int
    address: str
    health_address: str


def read_announcement(path: Path, *, pid: int) -> Announcement | None:
    """None while the process `pid` has not written it: what an earlier process left does not count."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        announcement = Announcement(
            service=str(fields["service"]),
            pid=int(fields["pid"]),
            address=str(fields["address"]),
            health_address=str(fields["health_address"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an announcement of a service: {error}") from error
    return announcement if announcement.pid == pid else None
