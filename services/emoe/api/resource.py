"""A MoEDeployment, parsed once at the edge: an untrusted dict becomes typed values, or one error with every problem.

What is refused here is what the API server refuses too, with the same messages where a rule spans several fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError

from emoe.api.names import API_VERSION, KIND, MAX_NAME_CHARACTERS, NAME_PATTERN
from emoe.api.problems import list_problems
from emoe.api.schema import ApiModel, Rule
from emoe.api.spec import Spec
from emoe.api.status import Status
from emoe.core.errors import InvalidResourceError

FREE_FORM = ("podTemplate",)


class Metadata(ApiModel):
    """What emoe reads of an object's metadata."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1, max_length=253)
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})
    deletion_timestamp: str | None = None


class MoEDeployment(ApiModel):
    """A mixture-of-experts model that is served with a part of its experts in memory."""

    api_version: Literal["emoe.dev/v1alpha1"] = API_VERSION
    kind: Literal["MoEDeployment"] = KIND
    metadata: Metadata
    spec: Spec
    """What is wanted of a served model."""
    status: Status = Status()
    """What the operator says is true."""

    rules = (
        Rule(
            cel=f"size(self.metadata.name) <= {MAX_NAME_CHARACTERS}",
            message=f"the name has more than {MAX_NAME_CHARACTERS} characters, which leaves no room for the names of "
            "pods and services; choose a shorter one",
            holds=lambda resource: len(resource.metadata.name) <= MAX_NAME_CHARACTERS,
            field=".metadata.name",
        ),
        Rule(
            cel=f"self.metadata.name.matches('{NAME_PATTERN}')",
            message="the name must do for a Service too; write small letters, digits and '-', with a letter first and "
            "no '-' last",
            holds=lambda resource: re.fullmatch(NAME_PATTERN, resource.metadata.name, re.ASCII) is not None,
            field=".metadata.name",
        ),
    )

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """InvalidResourceError lists every problem with its path. A status that cannot be read counts as none."""
        try:
            return cls._validate({**body, "status": {}})._with_status(body.get("status"))
        except ValidationError as error:
            raise InvalidResourceError(list_problems(error)) from error

    @classmethod
    def _validate(cls, body: Mapping[str, Any]) -> Self:
        # As JSON, where strict means what it means to the API server: no "3" for 3, but a list for a tuple.
        text = json.dumps(_without_nulls(body), default=repr)
        return cls.model_validate_json(text, strict=True, by_alias=True, by_name=False)

    def _with_status(self, status: object) -> Self:
        try:
            read = Status.model_validate_json(json.dumps(_without_nulls(status or {})), by_alias=True, by_name=False)
        except ValidationError:
            return self
        return self.model_copy(update={"status": read})


def _without_nulls(value: Any) -> Any:
    """The API server takes a null for a field that is left out, but in free-form parts."""
    if isinstance(value, Mapping):
        return {
            key: inner if key in FREE_FORM else _without_nulls(inner)
            for key, inner in value.items()
            if inner is not None
        }
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
