"""An open checkpoint as the service's calls need it: its name, its geometry, and who reads its bytes."""

from __future__ import annotations

import dataclasses

from emoe.core.experts import ExpertGrid
from emoe.loader.base_files import BaseFiles
from emoe.loader.profile import OpenProfile, open_profile
from emoe.loader.reads import ExpertReads
from emoe.runtime.grids import ModelId
from emoe.store.footprint import kv_bytes_per_token, measure
from emoe.store.store import ExpertStore
from emoe.store.tensors import DTYPE_BITS


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OpenModel:
    """`kv_bytes_per_token` and `max_context` are 0 where the configuration does not say; `profile` None where there is
    none to use."""

    id: ModelId
    grid: ExpertGrid
    path: str
    reads: ExpertReads
    base_files: BaseFiles
    base_bytes: int
    kv_bytes_per_token: int
    max_context: int
    profile: OpenProfile | None

    @classmethod
    def of(cls, store: ExpertStore, reads: ExpertReads) -> OpenModel:
        """Blocking: reads the profile beside the checkpoint."""
        longest = store.config.get("max_position_embeddings")
        return cls(
            id=ModelId(digest=store.digest, family=store.family),
            grid=store.grid,
            path=str(store.folder.resolve()),
            reads=reads,
            base_files=BaseFiles.of(store),
            base_bytes=measure(store).base_bytes,
            kv_bytes_per_token=kv_bytes_per_token(store.config, bits=DTYPE_BITS[store.dtype]) or 0,
            max_context=longest if type(longest) is int and longest > 0 else 0,
            profile=open_profile(store),
        )
