"""What pods refer to: an account, which may do nothing, the loader's certificates, the model's resolved revision."""

from __future__ import annotations

from emoe_operator.desired import Manifest
from emoe_operator.manifests.context import Context
from emoe_operator.manifests.environment import Variable, variable
from emoe_operator.manifests.identity import digest, manifest
from emoe_operator.manifests.storage import Mounted, mounted

_CA_FOLDER = "/etc/emoe/ca"
_CA_FILE = "ca.crt"
_REVISION_KEY = "revision"
_READERS = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Python's ssl and httpx, requests, botocore: each has its own name for the same thing."""


def service_account(context: Context) -> Manifest:
    return manifest(
        context.resource,
        api_version="v1",
        kind="ServiceAccount",
        name=context.resource.name,
        component=None,
        automountServiceAccountToken=False,
    )


def ca_bundle(context: Context) -> list[Manifest]:
    """Named by its content, or running loaders would not take up new certificates."""
    if not context.settings.ca_bundle:
        return []
    return [_loader_map(context, _ca_name(context), {_CA_FILE: context.settings.ca_bundle})]


def ca_environment(context: Context) -> list[Variable]:
    if not context.settings.ca_bundle:
        return []
    return [variable(name, f"{_CA_FOLDER}/{_CA_FILE}") for name in _READERS]


def ca_mounted(context: Context) -> Mounted:
    if not context.settings.ca_bundle:
        return Mounted()
    return mounted("ca", {"configMap": {"name": _ca_name(context)}}, _CA_FOLDER, read_only=True)


def model_revision(context: Context) -> list[Manifest]:
    """A map of its own, not a value in the pod: a loader that starts again fetches the commit that was resolved, and
    one that runs is not restarted because it has resolved it."""
    if context.spec.model.parsed_source.scheme != "hf":
        return []
    return [_loader_map(context, _revision_name(context), {_REVISION_KEY: context.revision})]


def revision_environment(context: Context) -> list[Variable]:
    if context.spec.model.parsed_source.scheme != "hf":
        return []
    source = {"configMapKeyRef": {"name": _revision_name(context), "key": _REVISION_KEY}}
    return [{"name": "EMOE_LOADER_REVISION", "valueFrom": source}]


def _revision_name(context: Context) -> str:
    return f"{context.resource.name}-model"


def _ca_name(context: Context) -> str:
    return f"{context.resource.name}-ca-{digest(context.settings.ca_bundle)[:8]}"


def _loader_map(context: Context, name: str, data: dict[str, str]) -> Manifest:
    return manifest(context.resource, api_version="v1", kind="ConfigMap", name=name, component="loader", data=data)
