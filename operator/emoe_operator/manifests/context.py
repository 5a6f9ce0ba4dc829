"""What every child is rendered from: the resource, the operator's settings, and what was decided before rendering."""

from __future__ import annotations

import dataclasses

from emoe.api.spec import Spec
from emoe_operator.desired import Images
from emoe_operator.observed import Resource
from emoe_operator.settings import OperatorSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    resource: Resource
    spec: Spec
    settings: OperatorSettings
    images: Images
    revision: str = ""
    """Of an hf:// source: the commit that it was resolved to, or what was asked for until then."""
