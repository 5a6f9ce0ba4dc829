"""Generates services/emoe/v1 from protos/, or checks that what is committed is what would be generated.

python tools/protos.py generate
python tools/protos.py check
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
SERVICES = ROOT / "services"
PACKAGE = Path("emoe/v1")
OUTPUTS = ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")


def generate(into: Path) -> None:
    """Writes `into`/emoe/v1; SystemExit with protoc's own message when a proto is wrong."""
    sources = sorted(str(path) for path in (PROTOS / PACKAGE).glob("*.proto"))
    # protoc finds its mypy plugins on the PATH, and they lie beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    options = [f"--{output}={into}" for output in OUTPUTS]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *options, *sources]
    done = subprocess.run(command, check=False, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"protoc failed:\n{done.stdout}{done.stderr}")


def find_differences(generated: Path, committed: Path) -> list[str]:
    """Names of files that differ, are missing, or have no proto any more."""
    fresh, kept = _contents(generated), _contents(committed)
    return sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*_pb2*.py*") if path.suffix in (".py", ".pyi")}


def check() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        differences = find_differences(Path(scratch) / PACKAGE, SERVICES / PACKAGE)
    if differences:
        sys.exit(f"services/emoe/v1 is not what protos/ gives ({', '.join(differences)}); run: make protos")
    print("services/emoe/v1 is what protos/ gives")


def remake() -> None:
    for name in _contents(SERVICES / PACKAGE):
        (SERVICES / PACKAGE / name).unlink()
    generate(SERVICES)


if __name__ == "__main__":
    actions = {"generate": remake, "check": check}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(actions)}}}")
    actions[sys.argv[1]]()
