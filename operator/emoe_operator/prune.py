"""What to remove: what was made for this resource and is wanted no more.

A child is ours if its controller is this very resource. A retained cache has no controller, so it is never found here;
what belongs to an earlier resource of the same name is the garbage collector's.
"""

from __future__ import annotations

from collections.abc import Iterable

from emoe_operator.desired import Manifest
from emoe_operator.manifests.identity import child_name
from emoe_operator.observed import Body, ChildKey, Observed, Resource


def to_prune(
    resource: Resource, observed: Observed, children: Iterable[Manifest], *, keeps_workers: bool
) -> tuple[ChildKey, ...]:
    """In a stable order. `keeps_workers`: while nothing can be said of workers, those that stand stay."""
    wanted = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in children}
    kept_name = child_name(resource, "worker") if keeps_workers else None
    superfluous = (
        key
        for key, body in observed.children.items()
        if key not in wanted and key[1] != kept_name and _is_ours(body, resource)
    )
    return tuple(sorted(superfluous))


def _is_ours(body: Body, resource: Resource) -> bool:
    meta = body["metadata"]
    owners = meta.get("ownerReferences") or []
    return "deletionTimestamp" not in meta and any(
        owner.get("controller") and owner.get("uid") == resource.uid for owner in owners
    )
