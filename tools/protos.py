"""Generates the packages of messages from protos/, or checks that what is committed is what would be generated.

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
PACKAGES = {Path("emoe/v1"): PROTOS / "emoe/v1", Path("emoe/oip"): PROTOS / "inference"}
"""Where the generated modules go, below services/, and the folder of their protos. A proto is imported by the former,
which need not be its package's name: `inference` is the protocol's own."""
OUTPUTS = ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")


def generate(into: Path) -> None:
    """Writes every package below `into`; SystemExit with protoc's own message when a proto is wrong."""
    for package, protos in PACKAGES.items():
        sources = sorted(str(path) for path in protos.glob("*.proto"))
        _run_protoc(f"-I{package}={protos}", *(f"--{output}={into}" for output in OUTPUTS), *sources)


def _run_protoc(*arguments: str) -> None:
    # protoc finds its mypy plugins on the PATH, and they lie beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
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
        differences = [
            f"{package}/{name}"
            for package in PACKAGES
            for name in find_differences(Path(scratch) / package, SERVICES / package)
        ]
    if differences:
        sys.exit(f"services/ is not what protos/ gives ({', '.join(differences)}); run: make protos")
    print("services/ has what protos/ gives")


def remake() -> None:
    for package in PACKAGES:
        for name in _contents(SERVICES / package):
            (SERVICES / package / name).unlink()
    generate(SERVICES)


if __name__ == "__main__":
    actions = {"generate": remake, "check": check}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(actions)}}}")
    actions[sys.argv[1]]()
