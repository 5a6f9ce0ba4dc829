"""Volumes made by hand, for a bed that has no provisioner: a folder of this machine behind a claim.

Only where the node's folders are ours to see, in our own bed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import kube as k

CLASS_NAME = "by-hand"
SIZE = "1Gi"


@contextlib.contextmanager
def volume_for(kube: k.Kube, claim: str, folder: Path) -> Iterator[None]:
    """For the claim of this name, whoever makes it; both are gone in the end, the folder's content is not."""
    name = f"{kube.namespace}-{claim}"
    k.run("kubectl", "delete", "persistentvolume", name, "--ignore-not-found", "--timeout=60s", seconds=70)
    folder.mkdir()
    folder.chmod(0o777)  # the kubelet gives no folder of the node to a pod's group
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": SIZE},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": CLASS_NAME,
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": kube.namespace, "name": claim},
                "hostPath": {"path": str(folder), "type": "Directory"},
            },
        }
    )
    try:
        yield
    finally:
        kube.delete("persistentvolumeclaim", claim, "--wait=false")
        k.run("kubectl", "delete", "persistentvolume", name, "--wait=false")


def claim(name: str) -> k.Body:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": CLASS_NAME,
            "resources": {"requests": {"storage": SIZE}},
        },
    }
