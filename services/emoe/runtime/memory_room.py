"""How much memory this process may still take: what its cgroups leave, or the host.

Page cache is not counted as taken, since the kernel gives it back. Knows nothing of devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

NO_LIMIT_BYTES = 2**60
"""cgroup v1 says so much, or more, where there is none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryRoom:
    limit_bytes: int
    used_bytes: int
    """By everything under the limit, this process among it."""
    source: str
    """Whose limit, in words."""

    @property
    def free_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def read_memory_room(root: Path = Path("/")) -> MemoryRoom:
    """The tightest: of each cgroup up to the topmost, and the host's. OSError where /proc is not to be read."""
    rooms = [_host(root), *_cgroups_v2(root), *_cgroups_v1(root)]
    return min(rooms, key=lambda room: room.free_bytes)


def _host(root: Path) -> MemoryRoom:
    lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    total = kib["MemTotal"] * 1024
    return MemoryRoom(limit_bytes=total, used_bytes=total - kib["MemAvailable"] * 1024, source="the host's memory")


def _cgroups_v2(root: Path) -> Iterator[MemoryRoom]:
    for folder in _folders(root / "sys/fs/cgroup", _cgroup_of(root, "")):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is not None and used is not None:
            cache = _stat(folder, "active_file", "inactive_file")
            yield MemoryRoom(limit_bytes=limit, used_bytes=used - cache, source="the cgroup's memory.max")


def _cgroups_v1(root: Path) -> Iterator[MemoryRoom]:
    for folder in _folders(root / "sys/fs/cgroup/memory", _cgroup_of(root, "memory")):
        limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None and limit < NO_LIMIT_BYTES:
            cache = _stat(folder, "total_active_file", "total_inactive_file")
            yield MemoryRoom(limit_bytes=limit, used_bytes=used - cache, source="the cgroup's memory limit")


def _cgroup_of(root: Path, controller: str) -> PurePosixPath | None:
    """Of this process. v2 has one hierarchy, without a name."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and (controller or not controllers):
            return PurePosixPath(path)
    return None


def _folders(mount: Path, cgroup: PurePosixPath | None) -> list[Path]:
    """From the process's own up to the mount. A container may see its own cgroup as the mount, under a path of the
    host's: then the mount is all there is."""
    if cgroup is None:
        return []
    own = mount / cgroup.relative_to("/")
    if not own.is_dir():
        return [mount]
    return [own, *(parent for parent in own.parents if parent == mount or mount in parent.parents)]


def _number(path: Path) -> int | None:
    """None where it is not there, or says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _stat(folder: Path, *names: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    figures: Mapping[str, str] = dict(line.split(" ", 1) for line in lines)
    return sum(int(figures.get(name, 0)) for name in names)
