"""What every part of the resource is built on: frozen, camelCase outside, unknown keys refused, rules in two languages.

A rule stands once, with the message that people see: as CEL, which the API server evaluates, and as Python, for
whoever has no API server at hand. `crd` takes both the schema and the CEL from these classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError

RULES_KEY = "x-kubernetes-validations"
BROKEN_RULES = "broken_rules"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """`message` says what would do. `field` is the path below the object, such as `.size`; empty for the object."""

    cel: str
    message: str
    holds: Callable[[Any], bool] | None
    """None for a rule about a change, which only the API server sees."""
    field: str = ""

    def to_dict(self) -> dict[str, str]:
        described = {"rule": self.cel, "message": self.message}
        return {**described, "fieldPath": self.field} if self.field else described


def broken_rules(found: list[tuple[str, str]]) -> PydanticCustomError:
    """An error of several: (path below the object, message) each."""
    return PydanticCustomError(BROKEN_RULES, "{count} rules are broken", {"count": len(found), "found": found})


class ApiModel(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """As YAML has it: camelCase, and what is not set left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [rule for rule in self.rules if rule.holds is not None and not rule.holds(self)]
        if broken:
            found = [(rule.field, rule.message) for rule in broken]
            raise broken_rules(found)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.rules:
            schema[RULES_KEY] = [rule.to_dict() for rule in cls.rules]
        return schema
