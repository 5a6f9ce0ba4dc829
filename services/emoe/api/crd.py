"""The CustomResourceDefinition, made from the typed models: their docstrings, bounds, defaults and rules.

pydantic writes JSON Schema; the API server wants a structural schema of its own dialect (no references, no null, no
`additionalProperties: false`), with defaults at every level of objects so that a path such as `.spec.workers.replicas`
exists whatever the user left out. `tools/crd.py` puts the result into the chart.
"""

from __future__ import annotations

from typing import Any

from emoe.api.names import GROUP, KIND, PLURAL, SHORT_NAME, SINGULAR, VERSION
from emoe.api.resource import MoEDeployment
from emoe.api.schema import RULES_KEY

Schema = dict[str, Any]

_INT_OR_STRING = "x-kubernetes-int-or-string"
_ORDER = (
    *("description", "type", "format", "enum", "pattern", "minLength", "maxLength", "minimum", "exclusiveMinimum"),
    *("maximum", "minItems", "maxItems", "maxProperties", _INT_OR_STRING, "x-kubernetes-preserve-unknown-fields"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "required", RULES_KEY),
)
"""The words that are taken over as they are, in the order of reading."""


def build_crd() -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
                "categories": ["emoe"],
            },
            "scope": "Namespaced",
            "versions": [_build_version()],
        },
    }


def _build_version() -> dict[str, Any]:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": build_schema()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.workers.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            _column("Ready", '.status.conditions[?(@.type=="Ready")].status', "Whether all that is wanted serves"),
            _column("Reason", '.status.conditions[?(@.type=="Ready")].reason', "Why it is ready, or not"),
            _column("Resident", ".status.residency.summary", "Experts in memory, of all"),
            _column("Hit", ".status.residency.hitRatio", "Share of expert choices that were in memory"),
            _column("Workers", ".status.workers.ready", "Workers that serve", kind="integer"),
            _column("Model", ".spec.model.source", "Where the model comes from"),
            _column("Address", ".status.address", "What clients call", priority=1),
            _column("Message", '.status.conditions[?(@.type=="Ready")].message', "What to do", priority=1),
            _column("Age", ".metadata.creationTimestamp", "Since it was made", kind="date"),
        ],
    }


def _column(name: str, path: str, description: str, *, kind: str = "string", priority: int = 0) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "description": description, "jsonPath": path}
    return {**column, "priority": priority} if priority else column


def build_schema() -> Schema:
    """The whole resource's; the API server knows metadata by itself."""
    raw = MoEDeployment.model_json_schema(by_alias=True)
    definitions = raw["$defs"]
    root: Schema = {
        "type": "object",
        "description": _one_line(raw["description"]),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "The version of this schema."},
            "kind": {"type": "string", "description": "The kind of resource."},
            "metadata": {"type": "object"},
            "spec": _structural(raw["properties"]["spec"], definitions),
            "status": _without_defaults(_structural(raw["properties"]["status"], definitions)),
        },
        # The API server knows the name here, but not as a field that a rule could point at.
        RULES_KEY: [{key: text for key, text in rule.items() if key != "fieldPath"} for rule in raw[RULES_KEY]],
    }
    return root


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`node` with its references put in place, in the API server's dialect."""
    node = _resolve(node, definitions)
    kept: Schema = {key: node[key] for key in _ORDER if key in node}
    if "description" in kept:
        kept["description"] = _one_line(kept["description"])
    if _INT_OR_STRING in node:
        kept["anyOf"] = node["anyOf"]
    if "exclusiveMinimum" in kept:
        kept |= {"minimum": kept["exclusiveMinimum"], "exclusiveMinimum": True}
    if "const" in node:
        kept["enum"] = [node["const"]]
    default = _default_of(node, definitions)
    if default is not None:
        kept["default"] = default
    if "items" in node:
        kept["items"] = _structural(node["items"], definitions)
    if isinstance(values := node.get("additionalProperties"), dict):
        kept["additionalProperties"] = _structural(values, definitions)
    if "properties" in node:
        kept["properties"] = {key: _structural(value, definitions) for key, value in node["properties"].items()}
    return kept


def _without_defaults(schema: Schema) -> Schema:
    """Of the status, which says what was observed: nothing is filled in that nobody wrote."""
    kept = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in kept:
        kept["properties"] = {key: _without_defaults(value) for key, value in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = _without_defaults(kept["items"])
    return kept


def _resolve(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Without `$ref`, and without the null that stands for "left out"; what the field itself says comes first."""
    branches = [branch for branch in node.get("anyOf", ()) if branch != {"type": "null"}]
    if len(branches) == 1:
        node = {**branches[0], **{key: value for key, value in node.items() if key != "anyOf"}}
    if "$ref" not in node:
        return node
    target = definitions[node["$ref"].removeprefix("#/$defs/")]
    return _resolve({**target, **{key: value for key, value in node.items() if key != "$ref"}}, definitions)


def _default_of(node: Schema, definitions: dict[str, Schema]) -> object:
    """Of an object: `{}` if anything inside has a default, which the API server then fills in; else nothing."""
    default = node.get("default")
    if node.get("type") != "object":
        return None if default == [] else default
    inner = (_resolve(value, definitions) for value in node.get("properties", {}).values())
    has_inner = default is not None and any(_default_of(value, definitions) is not None for value in inner)
    return {} if has_inner else None


def _one_line(text: str) -> str:
    return " ".join(text.split())
