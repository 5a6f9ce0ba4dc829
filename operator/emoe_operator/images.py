"""Which images a resource runs: an upgraded operator brings new ones, and restarts nobody's workers with them.

They are chosen when a spec changes, and written to status. A change of replicas alone is no such change: an HPA must
not roll what it scales.
"""

from __future__ import annotations

from emoe.api.status import Images as ImagesStatus
from emoe_operator.desired import Images
from emoe_operator.manifests.identity import SPEC_ANNOTATION, child_name
from emoe_operator.manifests.workloads import spec_digest
from emoe_operator.observed import Observed, Resource
from emoe_operator.recorded import recorded_status
from emoe_operator.settings import OperatorSettings


def choose_images(resource: Resource, observed: Observed, settings: OperatorSettings) -> Images:
    kept = recorded_status(resource).images
    if kept and (kept.generation == resource.generation or _runs_this_spec(resource, observed)):
        return _images(kept)
    return Images(control=settings.control_image, worker=settings.worker_image)


def _runs_this_spec(resource: Resource, observed: Observed) -> bool:
    standing = observed.children.get(("Deployment", child_name(resource, "scheduler")), {})
    annotations = standing.get("metadata", {}).get("annotations") or {}
    return annotations.get(SPEC_ANNOTATION) == spec_digest(resource.spec)


def _images(kept: ImagesStatus) -> Images:
    return Images(control=kept.control, worker=kept.worker)
