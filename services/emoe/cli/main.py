"""The entry point of the `emoe` command. Says what to install when the command's own extra is missing."""

from __future__ import annotations

import os
import platform
import sys


def app() -> None:
    _keep_numpy_to_one_thread()
    try:
        from emoe.cli.commands import app as commands
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "emoe":
            raise
        sys.exit(f"emoe: the command needs {error.name}, which is not installed: pip install 'emoe[cli]'")
    commands()


def _keep_numpy_to_one_thread() -> None:
    """Before numpy is imported: its products are small here, and OpenBLAS's idle threads spin beside the engine's.

    Elsewhere than on x86 torch itself computes by OpenBLAS, and keeps its threads.
    """
    if platform.machine() in {"x86_64", "AMD64"}:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


if __name__ == "__main__":
    app()
