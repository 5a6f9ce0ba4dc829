"""Where the peers' environments lie, and whether they are there. `install` makes them.

Each peer's packages stand apart from emoe's and from the others': AirLLM needs an older transformers than emoe.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import emoe
from emoe.bench.failures import BenchmarkError

FOLDER_NAME = ".venv-peers"
VARIABLE = "EMOE_BENCH_PEERS"
SERVICES = Path(emoe.__file__).parent.parent


def default_place() -> Path:
    """$EMOE_BENCH_PEERS, else .venv-peers beside `services` in a working copy."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else SERVICES.parent / FOLDER_NAME


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    folder: Path

    def python(self, environment: str, peer: str) -> str:
        """The interpreter that has the peer; BenchmarkError, one clear line, when it is not there."""
        if not (self.folder / f"{environment}.done").is_file():
            raise BenchmarkError(f"{peer}: not measured: run make bench-peers")
        return str(self.folder / environment / "bin" / "python")

    def accelerate(self, peer: str) -> dict[str, str]:
        """accelerate for emoe's own interpreter, so that torch and transformers are the same as everyone's."""
        self.python("accelerate", peer)
        before = os.environ.get("PYTHONPATH")
        return {"PYTHONPATH": os.pathsep.join([str(self.folder / "accelerate"), *([before] if before else [])])}

    def own_code(self) -> dict[str, str]:
        return {"PYTHONPATH": str(SERVICES)}
