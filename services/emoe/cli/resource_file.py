"""A file of Kubernetes resources, read as kubectl reads it: YAML or JSON, several documents, lists taken apart."""

from __future__ import annotations

from typing import Any

import yaml

from emoe.cli.failures import CommandError

_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """kubectl makes no dates of text that looks like one, and refuses a key that comes twice."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _mapping_without_doubles(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = key_node.value
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} comes twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_doubles)


def read_documents(text: str, *, file: str) -> list[dict[str, Any]]:
    """Every object of the file. CommandError names file and line."""
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise CommandError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    found: list[dict[str, Any]] = []
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            raise CommandError(f"{file} has a document that is no object; every resource begins with apiVersion")
        items = document.get("items")
        found += [one for one in items if isinstance(one, dict)] if isinstance(items, list) else [document]
    return found
