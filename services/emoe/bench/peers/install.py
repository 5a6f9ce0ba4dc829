"""`make bench-peers`: the environments of the engines that `emoe bench engine` is compared with, pinned.

`python -m emoe.bench.peers.install [NAME ...]`. One that fails leaves the others whole, and its benchmark unmeasured.
llama-cpp-python is built here from source: about eight minutes on two cores, and a compiler.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from emoe.bench.peers.places import default_place

ENVIRONMENTS = {
    "accelerate": ("accelerate==1.15.0", "psutil==7.1.3"),
    "llama": ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy<3"),
    "airllm": ("airllm==4.0.0", "transformers==4.57.6", "torch==2.13.0"),
}
INSTALL_SECONDS = 3600.0


def main() -> None:
    chosen = sys.argv[1:] or list(ENVIRONMENTS)
    unknown = sorted(set(chosen) - set(ENVIRONMENTS))
    if unknown:
        raise SystemExit(f"bench-peers: no peer is called {unknown[0]}; there are {', '.join(ENVIRONMENTS)}")
    folder = default_place()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    failed = [name for name in chosen if not install(name, folder)]
    if failed:
        raise SystemExit(f"bench-peers: could not be installed: {', '.join(failed)}; the lines above say why")


def install(name: str, folder: Path) -> bool:
    """Whether it is there now."""
    done = folder / f"{name}.done"
    pins = "\n".join(ENVIRONMENTS[name])
    if done.is_file() and done.read_text() == pins:
        print(f"bench-peers: {name} is there")
        return True
    print(f"bench-peers: installing {name}: {', '.join(ENVIRONMENTS[name])}", flush=True)
    done.unlink(missing_ok=True)
    try:
        _install(name, folder / name)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"bench-peers: {name}: {error}", file=sys.stderr, flush=True)
        return False
    done.write_text(pins)
    return True


def _install(name: str, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    if name != "accelerate":
        _run(sys.executable, "-m", "venv", str(place))
        _run(str(place / "bin" / "pip"), "install", *ENVIRONMENTS[name])
        return
    # Beside emoe's own torch and transformers, so without its dependencies; emoe's environment has no pip.
    maker = place.with_name("pip")
    if not (maker / "bin" / "pip").exists():
        _run(sys.executable, "-m", "venv", str(maker))
    _run(str(maker / "bin" / "pip"), "install", "--no-deps", "--target", str(place), *ENVIRONMENTS[name])


def _run(*command: str) -> None:
    options = ("--quiet", "--disable-pip-version-check") if command[1] == "install" else ()
    subprocess.run([*command, *options], check=True, timeout=INSTALL_SECONDS)


if __name__ == "__main__":
    main()
