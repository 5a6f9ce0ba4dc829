"""What all four kinds of pod have in common: resources, and what a user adds to a pod."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator
from pydantic.config import JsonDict

from emoe.api.quantity import Quantity
from emoe.api.schema import ApiModel, Rule, broken_rules

ResourceName = Annotated[str, StringConstraints(max_length=253)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
AnnotationValue = Annotated[str, StringConstraints(max_length=8192)]

MAX_RESOURCES = 16
MAX_LABELS = 32


def _requests_fit(resources: Resources) -> bool:
    pairs = ((amount, resources.limits.get(name)) for name, amount in resources.requests.items())
    return all(limit is None or amount.value <= limit.value for amount, limit in pairs)


def _not_negative(field: str) -> Rule:
    def holds(resources: Resources) -> bool:
        amounts: dict[str, Quantity] = getattr(resources, field)
        return all(amount.value >= 0 for amount in amounts.values())

    return Rule(
        cel=f"!has(self.{field}) || self.{field}.all(name, !isQuantity(string(self.{field}[name])) "
        f"|| quantity(string(self.{field}[name])).compareTo(quantity('0')) >= 0)",
        message=f"a {field.removesuffix('s')} cannot be negative; write 0 or more",
        holds=holds,
        field=f".{field}",
    )


class Resources(ApiModel):
    """What the container asks of its node, as in any pod."""

    limits: dict[ResourceName, Quantity] = Field(default={}, max_length=MAX_RESOURCES)
    """The most it may use. A GPU is asked for here: nvidia.com/gpu: 1."""
    requests: dict[ResourceName, Quantity] = Field(default={}, max_length=MAX_RESOURCES)
    """What the scheduler of Kubernetes sets aside for it."""

    rules = (
        Rule(
            cel="!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) "
            "|| !isQuantity(string(self.requests[name])) || !isQuantity(string(self.limits[name])) "
            "|| quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name]))) <= 0)",
            message="a request is more than the limit of the same name; lower it to the limit, or raise the limit",
            holds=lambda resources: _requests_fit(resources),
            field=".requests",
        ),
        *(_not_negative(field) for field in ("limits", "requests")),
    )

    @property
    def memory_limit_bytes(self) -> int | None:
        limit = self.limits.get("memory")
        return limit.num_bytes if limit else None

    @property
    def asks_for_gpu(self) -> bool:
        names = {name for name, amount in {**self.requests, **self.limits}.items() if amount.value > 0}
        return any(name.endswith("/gpu") or name.startswith("nvidia.com/mig-") for name in names)


class PodMetadata(ApiModel):
    """Labels and annotations of the pods; those that emoe sets itself win."""

    labels: dict[ResourceName, LabelValue] = Field(default={}, max_length=MAX_LABELS)
    """Added to the pods' labels."""
    annotations: dict[ResourceName, AnnotationValue] = Field(default={}, max_length=MAX_LABELS)
    """Added to the pods' annotations."""


NAMED_LISTS = ("containers", "initContainers", "volumes")
_NAMED: JsonDict = {
    "type": "array",
    "maxItems": 64,
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["name"],
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string", "maxLength": 253}},
        "x-kubernetes-preserve-unknown-fields": True,
    },
}


class PodTemplate(ApiModel):
    """What is added to the pods that emoe makes. The container of emoe is named main."""

    metadata: PodMetadata = PodMetadata()
    """Labels and annotations of the pods."""
    spec: dict[str, Any] = Field(
        default={},
        json_schema_extra={
            "additionalProperties": True,
            "x-kubernetes-preserve-unknown-fields": True,
            "properties": dict.fromkeys(NAMED_LISTS, _NAMED),
        },
    )
    """A pod's spec, as far as one wants to say it: node selector, tolerations, affinity, volumes, sidecars, env of
    main."""

    @field_validator("spec")
    @classmethod
    def _names_what_is_listed(cls, spec: dict[str, Any]) -> dict[str, Any]:
        found = [problem for key in NAMED_LISTS if key in spec for problem in _list_problems(key, spec[key])]
        if found:
            raise broken_rules(found)
        return spec


def _list_problems(key: str, entries: object) -> list[tuple[str, str]]:
    if not isinstance(entries, list):
        return [(f".{key}", "must be a list")]
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    unnamed = [index for index, name in enumerate(names) if not isinstance(name, str)]
    twice = [index for index, name in enumerate(names) if name in names[:index] and index not in unnamed]
    return [(f".{key}[{index}].name", "is required; give it a value") for index in unnamed] + [
        (f".{key}[{index}].name", f"{names[index]!r} is named twice; keep one") for index in twice
    ]
