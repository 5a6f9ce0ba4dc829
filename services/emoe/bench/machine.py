"""Names the machine a figure was taken on; a figure without it says little."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from emoe.bench.rows import Machine
from emoe.runtime.cpus import usable_cpus


def describe_machine(*, threads: int | None) -> Machine:
    """`threads` None: as many as a worker would take."""
    return Machine(
        cpu=_cpu_model(Path("/proc/cpuinfo")),
        num_cpus=len(os.sched_getaffinity(0)),
        threads=threads or usable_cpus(),
        load_average=os.getloadavg()[0],
        python=platform.python_version(),
        torch=importlib.metadata.version("torch"),
        transformers=importlib.metadata.version("transformers"),
    )


def _cpu_model(cpuinfo: Path) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
