"""What tests can do beyond the API: reach a Service, crash a process, restart a part of the control plane.

In our own bed pods and Services are reachable and containers can be killed from the node. On a cluster that was given,
Services are reached by `kubectl port-forward`, a crash is a pod deleted without grace, and the control plane stays as
it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import subprocess
from collections.abc import Iterator
from pathlib import Path

import kube as k

BED_SCRIPT = Path(__file__).parent / "bed" / "cluster"
BED_STATE = Path(os.environ.get("BED", "/var/tmp/emoe-bed"))
NODE_ADDRESS = "10.244.0.1"
"""Where pods reach what a test serves, in our own bed."""


def is_our_bed() -> bool:
    return os.environ.get("EMOE_CLUSTER") == "bed"


@contextlib.contextmanager
def reach(kube: k.Kube, service: str) -> Iterator[str]:
    """host:port of a Service's first port, reachable from here."""
    spec = kube.get("service", service)["spec"]
    port = spec["ports"][0]["port"]
    if is_our_bed():
        yield f"{spec['clusterIP']}:{port}"
        return
    command = ["kubectl", f"--namespace={kube.namespace}", "port-forward", f"service/{service}", f":{port}"]
    forward = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"127.0.0.1:{_local_port(forward)}"
    finally:
        forward.terminate()
        forward.wait(10)


def _local_port(forward: subprocess.Popen[str]) -> int:
    assert forward.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(forward.stdout, selectors.EVENT_READ)
        assert selector.select(30), "kubectl port-forward says nothing"
    said = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
    assert said is not None
    return int(said.group(1))


def crash(kube: k.Kube, pod: k.Body) -> None:
    """Ends a pod's process as the kernel's memory killer would: no warning, no drain."""
    if not is_our_bed():
        kube.delete("pod", k.name_of(pod), "--grace-period=0", "--force", "--wait=false")
        return
    _ctr("tasks", "kill", "--signal=KILL", _container(pod))


def restart_part(name: str) -> None:
    """Kills a part of the control plane and starts it again, such as kube-apiserver."""
    k.run(str(BED_SCRIPT), "kill", name)
    k.run(str(BED_SCRIPT), "start", name)


def resident_bytes(pod: k.Body) -> int:
    """Of all processes in a pod's only container, as the node counts pages."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _processes(pod))
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pod: k.Body) -> float:
    """That all processes in a pod's only container have used so far."""
    return sum(int(fields[11]) + int(fields[12]) for fields in _stats(pod)) / os.sysconf("SC_CLK_TCK")


def num_major_faults(pod: k.Body) -> int:
    """Times that they had to read a page of their own from the disk so far, such as code that was pushed out."""
    return sum(int(fields[9]) for fields in _stats(pod))


def _stats(pod: k.Body) -> list[list[str]]:
    """proc(5)'s stat from its third field on, of each process."""
    return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in _processes(pod)]


def _processes(pod: k.Body) -> list[str]:
    listing = _ctr("tasks", "ps", _container(pod))
    return [line.split()[0] for line in listing.splitlines()[1:]]


def _container(pod: k.Body) -> str:
    return str(pod["status"]["containerStatuses"][0]["containerID"]).removeprefix("containerd://")


def _ctr(*arguments: str) -> str:
    return k.run("ctr", f"--address={BED_STATE}/ctd/c.sock", "--namespace=k8s.io", *arguments)
