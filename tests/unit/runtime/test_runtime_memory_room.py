"""The memory that may still be taken is what the tightest of cgroups and host leaves, page cache not counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from emoe.runtime.memory_room import read_memory_room

MIB = 2**20
HOST = f"MemTotal: {8192 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {6144 * 1024} kB\n"


def machine(root: Path, cgroup: str) -> Path:
    write(root / "proc/meminfo", HOST)
    write(root / "proc/self/cgroup", cgroup)
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limit_v2(folder: Path, *, limit: str, current: int, cache: int = 0) -> None:
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{current * MIB}\n")
    write(folder / "memory.stat", f"anon 5\nactive_file {cache * MIB}\ninactive_file 0\n")


def limit_v1(folder: Path, *, limit: int, usage: int, cache: int = 0) -> None:
    write(folder / "memory.limit_in_bytes", f"{limit}\n")
    write(folder / "memory.usage_in_bytes", f"{usage * MIB}\n")
    write(folder / "memory.stat", f"total_active_file 0\ntotal_inactive_file {cache * MIB}\n")


def test_without_a_limit_the_host_says_what_is_free(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    limit_v2(root / "sys/fs/cgroup", limit="max", current=10)
    room = read_memory_room(root)
    assert (room.free_bytes, room.source) == (6144 * MIB, "the host's memory")


def test_a_limit_counts_and_page_cache_under_it_does_not(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    limit_v2(root / "sys/fs/cgroup", limit=str(1000 * MIB), current=600, cache=400)
    room = read_memory_room(root)
    assert (room.limit_bytes, room.free_bytes) == (1000 * MIB, 800 * MIB)


def test_of_nested_cgroups_the_one_that_leaves_the_least_counts(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/pods/one\n")
    mount = root / "sys/fs/cgroup"
    limit_v2(mount / "pods/one", limit=str(2000 * MIB), current=100)
    limit_v2(mount / "pods", limit=str(3000 * MIB), current=2500)
    assert read_memory_room(root).free_bytes == 500 * MIB


def test_a_limit_of_the_older_kind_counts_too(tmp_path: Path) -> None:
    root = machine(tmp_path, "4:cpu,cpuacct:/x\n3:memory:/pod\n0::/\n")
    mount = root / "sys/fs/cgroup/memory"
    limit_v1(mount, limit=2**63 - 4096, usage=9000)
    limit_v1(mount / "pod", limit=700 * MIB, usage=300, cache=100)
    assert read_memory_room(root).free_bytes == 500 * MIB


def test_a_container_that_sees_its_cgroup_as_the_mount_finds_its_limit(tmp_path: Path) -> None:
    root = machine(tmp_path, "3:memory:/kubepods/burstable/pod1\n")
    limit_v1(root / "sys/fs/cgroup/memory", limit=700 * MIB, usage=300)
    assert read_memory_room(root).free_bytes == 400 * MIB


def test_more_taken_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n")
    limit_v2(root / "sys/fs/cgroup", limit=str(100 * MIB), current=150)
    assert read_memory_room(root).free_bytes == 0


def test_this_machine_has_some() -> None:
    room = read_memory_room()
    assert 0 < room.free_bytes < room.limit_bytes


def test_a_machine_without_proc_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="meminfo"):
        read_memory_room(tmp_path)
