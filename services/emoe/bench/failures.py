"""What ends a benchmark with one clear line."""

from __future__ import annotations

from emoe.core.errors import EmoeError


class BenchmarkError(EmoeError):
    """A figure could not be taken, or would have been wrong; the message says which and why."""
