"""Quantities and other values that Kubernetes lets people write as a number or as text, as pydantic knows them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from emoe.api.schema import RULES_KEY, Rule
from emoe.core.memory import MEMORY_PATTERN, ExpertMemory, parse_expert_memory
from emoe.core.quantity import MAX_CHARACTERS, PATTERN, parse_quantity, whole_bytes
from emoe.core.refresh import MAX_SET_INTERVAL_PROMPTS, parse_interval

PERCENT_OR_COUNT_PATTERN = r"^([0-9]{1,4}|(100|[1-9]?[0-9])%)$"


class IntOrString(str):
    """The text that was written: two texts of one value are two values here, as in Kubernetes."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: int | str) -> Self:
        made = cls(value)
        made.check()
        return made

    def check(self) -> None:
        """ValueError if the text says nothing."""
        raise NotImplementedError

    @classmethod
    def describe(cls) -> dict[str, object]:
        """Its schema, beyond being an integer or a string."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        written = core_schema.no_info_after_validator_function(
            cls.parse,
            core_schema.union_schema([core_schema.int_schema(strict=True), core_schema.str_schema(strict=True)]),
        )
        return core_schema.json_or_python_schema(
            json_schema=written,
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), written]),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # The form that the API server allows beside x-kubernetes-int-or-string, letter by letter.
        return {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            **cls.describe(),
        }


class Quantity(IntOrString):
    __slots__ = ()

    def check(self) -> None:
        parse_quantity(self)

    @classmethod
    def describe(cls) -> dict[str, object]:
        return {"pattern": PATTERN, "maxLength": MAX_CHARACTERS}

    @property
    def value(self) -> Fraction:
        return parse_quantity(self)

    @property
    def num_bytes(self) -> int:
        """Rounded up. ValueError if negative."""
        return whole_bytes(self)


MEMORY_RULES = (
    Rule(
        cel=f"string(self).matches(r'{MEMORY_PATTERN}')",
        message="memory is not understood; write a share up to 100% (25%), a quantity (8Gi) or auto",
        holds=None,
    ),
    Rule(
        cel="!isQuantity(string(self)) || quantity(string(self)).compareTo(quantity('64Ki')) >= 0",
        message="memory is less than 64Ki; write a share as 25%, a quantity as 8Gi or 500M",
        holds=None,
    ),
    Rule(
        cel="!string(self).matches('^[0.]+%$')",
        message="memory is nothing; give a share above 0%, such as 25%",
        holds=None,
    ),
)
"""For the API server alone: in Python `parse_expert_memory` says the same, and what was written."""


class Memory(IntOrString):
    """`25%` of all expert bytes, a Quantity, or `auto`."""

    __slots__ = ()

    def check(self) -> None:
        parse_expert_memory(self)

    @classmethod
    def describe(cls) -> dict[str, object]:
        return {"maxLength": MAX_CHARACTERS, RULES_KEY: [rule.to_dict() for rule in MEMORY_RULES]}

    @property
    def parsed(self) -> ExpertMemory:
        return parse_expert_memory(self)


PromptsOrAuto = Annotated[
    int | str,
    PlainValidator(parse_interval),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "pattern": "^auto$",
            "maxLength": 4,
            "minimum": 1,
            "maximum": MAX_SET_INTERVAL_PROMPTS,
        }
    ),
]
"""A number stays one here, so that its default is written as `40`."""


class CountOrPercent(IntOrString):
    """As in a Deployment's strategy: so many pods, or a share of them."""

    __slots__ = ()

    def check(self) -> None:
        if not re.fullmatch(PERCENT_OR_COUNT_PATTERN, self, re.ASCII):
            raise ValueError(f"{self!r} is neither a number of pods nor a share of them; write it like 1 or 25%")

    @classmethod
    def describe(cls) -> dict[str, object]:
        return {"pattern": PERCENT_OR_COUNT_PATTERN, "maxLength": 4, "minimum": 0, "maximum": 9999}

    @property
    def is_zero(self) -> bool:
        return not int(self.rstrip("%"))

    def to_manifest(self) -> int | str:
        return int(self) if self.isdigit() else self
