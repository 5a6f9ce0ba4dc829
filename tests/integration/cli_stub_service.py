"""A child that keeps to the services' process contract, with faults on demand. Ready once its health port listens."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path

from emoe.runtime.process import announce, die_with_parent


def bind(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((host, int(port)))
    return server


def name_of(server: socket.socket) -> str:
    host, port = server.getsockname()
    return f"{host}:{port}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--health-listen", required=True)
    parser.add_argument("--announce-file", type=Path, required=True)
    parser.add_argument("--exit-with-parent", action="store_true")
    parser.add_argument("--parent-pid", type=int)
    parser.add_argument("--fault", default="")
    parser.add_argument("--dies-if", type=Path, help="exit 3 at start when this file exists")
    options = parser.parse_args()

    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    if options.exit_with_parent:
        die_with_parent(options.parent_pid)
    print("stub begins", flush=True)
    if options.fault == "dies" or (options.dies_if and options.dies_if.exists()):
        sys.exit("stub: no such model")
    main_port, health_port = bind(options.listen), bind(options.health_listen)
    if options.fault != "silent":
        announce(options.announce_file, service="stub", address=name_of(main_port), health_address=name_of(health_port))
    if options.fault != "unready":
        health_port.listen()
    signal.sigwait(signals if options.fault != "ignores-term" else {signal.SIGUSR1})
    print("stub ends", flush=True)


if __name__ == "__main__":
    main()
