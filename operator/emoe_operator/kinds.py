"""The kinds that the operator reads and writes, and where the API server has them."""

from __future__ import annotations

import dataclasses

from emoe.api import names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    name: str
    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part is not None]
        return "/".join(parts)


MOED = Kind(name=names.KIND, group=names.GROUP, version=names.VERSION, plural=names.PLURAL)
POD = Kind(name="Pod", group="", version="v1", plural="pods")
EVENT = Kind(name="Event", group="events.k8s.io", version="v1", plural="events")

CHILDREN = (
    Kind(name="Deployment", group="apps", version="v1", plural="deployments"),
    Kind(name="Service", group="", version="v1", plural="services"),
    Kind(name="ServiceAccount", group="", version="v1", plural="serviceaccounts"),
    Kind(name="PersistentVolumeClaim", group="", version="v1", plural="persistentvolumeclaims"),
    Kind(name="PodDisruptionBudget", group="policy", version="v1", plural="poddisruptionbudgets"),
    Kind(name="NetworkPolicy", group="networking.k8s.io", version="v1", plural="networkpolicies"),
    Kind(name="ConfigMap", group="", version="v1", plural="configmaps"),
)
"""What a resource may own. Watched by the owner's label, as are the pods of the Deployments."""

LABELLED = (*CHILDREN, POD)
WATCHED = (MOED, *LABELLED)
_BY_NAME = {kind.name: kind for kind in (*WATCHED, EVENT)}


def kind_of(name: str) -> Kind:
    return _BY_NAME[name]
