"""Where a model comes from, as `spec.model.source` names it. Says what the words mean, fetches nothing."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, cast

Scheme = Literal["hf", "s3", "http", "https", "pvc", "demo"]

MAX_CHARACTERS = 1024
_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_REST = r"[^\s?#]*"
PATTERN = (
    rf"^(hf://{_SEGMENT}/{_SEGMENT}|s3://[a-z0-9][a-z0-9.-]{{1,62}}(/{_REST})?"
    rf"|https?://[A-Za-z0-9\[\]._:-]+(/{_REST})?|pvc://{_LABEL}(\.{_LABEL})*(/{_REST})?|demo://)$"
)
PARENT_PATTERN = r"(^|/)\.\.(/|$)"


SOURCE_FORMS = "hf://ORGANISATION/NAME, s3://BUCKET/PREFIX, https://HOST/PATH, pvc://CLAIM/PATH or demo://"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSource:
    """`root` is the organisation, bucket, host or claim; `path` what follows it, without slashes at its ends."""

    scheme: Scheme
    root: str = ""
    path: str = ""

    @property
    def is_claim(self) -> bool:
        return self.scheme == "pvc"


def is_source(text: str) -> bool:
    """Whether it has one of the forms, and does not climb out of its folder by `..`."""
    if len(text) > MAX_CHARACTERS or not re.fullmatch(PATTERN, text, re.ASCII):
        return False
    return not re.search(PARENT_PATTERN, text)


def parse_source(text: str) -> ModelSource:
    """ValueError says which forms there are."""
    if not is_source(text):
        raise ValueError(f"source {text[:80]!r} is not understood; write {SOURCE_FORMS}")
    scheme, _, rest = text.partition("://")
    root, _, path = rest.partition("/")
    return ModelSource(scheme=cast(Scheme, scheme), root=root, path=path.strip("/"))
