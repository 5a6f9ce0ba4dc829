"""The entry point of the `emoe` command. Says what to install when the command's own extra is missing."""

from __future__ import annotations

import sys


def app() -> None:
    try:
        from emoe.cli.commands import app as commands
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "emoe":
            raise
        sys.exit(f"emoe: the command needs {error.name}, which is not installed: pip install 'emoe[cli]'")
    commands()


if __name__ == "__main__":
    app()
