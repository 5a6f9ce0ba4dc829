from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "grpc", "numpy", "pydantic_settings")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["up", "--help"]], ids=" ".join)
def test_help_needs_none_of_the_heavy_libraries(arguments: list[str]) -> None:
    code = (
        "import sys; from emoe.cli.commands import app\n"
        f"try: app({arguments!r})\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "Usage" in done.stdout
    assert done.stderr == "[]\n"


def test_a_missing_extra_of_the_command_is_named() -> None:
    code = "import sys; sys.modules['typer'] = None; from emoe.cli.main import app; app()"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'emoe[cli]'" in done.stderr


@pytest.mark.parametrize(
    ("service", "library", "extra"),
    [("worker", "torch", "emoe[worker]"), ("loader", "xxhash", "emoe[services,store]")],
    ids=["worker", "loader"],
)
def test_a_missing_extra_of_a_service_is_named(service: str, library: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None; sys.argv[1:] = ['serve', {service!r}, '--model=/m'];"
        "from emoe.cli.main import app; app()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"needs {library}, which is not installed: pip install '{extra}'" in done.stderr
