"""A real API server for the operator's tests: etcd and kube-apiserver alone, no controllers, no kubelet, no network.

The binaries come from $EMOE_KUBE_BIN or ~/.cache/emoe/testbed/bin (etcd also from PATH); `running_apiserver` is entered
once a session. Nothing garbage-collects, nothing starts pods: a test writes what those would write.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

START_SECONDS = 90.0
_FOLDER = "~/.cache/emoe/testbed/bin"


def find_binaries() -> dict[str, Path] | str:
    """Where etcd, kube-apiserver and openssl are, or what is missing, in words for a skip."""
    folder = Path(os.environ.get("EMOE_KUBE_BIN") or _FOLDER).expanduser()
    path = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
    found = {name: shutil.which(name, path=path) for name in ("etcd", "kube-apiserver", "openssl")}
    missing = [name for name, place in found.items() if place is None]
    if missing:
        return f"no {', '.join(missing)} in {folder} or on PATH (set EMOE_KUBE_BIN)"
    return {name: Path(place) for name, place in found.items() if place is not None}


class ApiServer:
    """Its processes can be stopped and started again, for tests of what the operator does meanwhile."""

    def __init__(self, folder: Path, binaries: Mapping[str, Path]) -> None:
        self.folder = folder
        self.kubeconfig = folder / "kubeconfig"
        self.port, self._etcd_port, self._peer_port = _free_ports(3)
        self.audit_log = folder / "audit.log"
        self._binaries = binaries
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        _make_certificates(self.folder, self._binaries["openssl"])
        self.kubeconfig.write_text(yaml.safe_dump(self._kubeconfig()))
        self._start_etcd()
        self.start_apiserver()

    def stop(self) -> None:
        for name in ("kube-apiserver", "etcd"):
            self._stop(name)

    def start_apiserver(self) -> None:
        files = self.folder
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={files / 'cert-dir'}",
            f"--client-ca-file={files / 'ca.crt'}",
            f"--tls-cert-file={files / 'server.crt'}",
            f"--tls-private-key-file={files / 'server.key'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={files / 'server.key'}",
            f"--service-account-signing-key-file={files / 'server.key'}",
            f"--audit-policy-file={files / 'audit.yaml'}",
            f"--audit-log-path={self.audit_log}",
            "--profiling=false",
        )
        self._wait_until("kube-apiserver", f"https://127.0.0.1:{self.port}/readyz", context=self._client_context())

    def stop_apiserver(self) -> None:
        self._stop("kube-apiserver")

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes connections and never answers, as one that is cut off or out of memory does."""
        process = self._processes["kube-apiserver"]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def _start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        self._spawn(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        )
        self._wait_until("etcd", f"{client}/health", context=None)

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [self._binaries[name], *arguments], stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )

    def _stop(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _wait_until(self, name: str, url: str, *, context: ssl.SSLContext | None) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._processes[name].poll() is not None:
                break
            with contextlib.suppress(urllib.error.URLError, OSError):
                if urllib.request.urlopen(url, context=context, timeout=2).status == 200:
                    return
            time.sleep(0.1)
        tail = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{name} did not become ready within {START_SECONDS:.0f} s: {tail}")

    def _client_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.folder / "ca.crt")
        context.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        return context

    def _kubeconfig(self) -> dict[str, Any]:
        server = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": str(self.folder / "ca.crt")}
        user = {"client-certificate": str(self.folder / "admin.crt"), "client-key": str(self.folder / "admin.key")}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "admin", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }


@contextlib.contextmanager
def running_apiserver(folder: Path, binaries: Mapping[str, Path]) -> Iterator[ApiServer]:
    server = ApiServer(folder, binaries)
    try:
        server.start()
        yield server
    finally:
        server.stop()


_AUDIT_POLICY = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n"


def _make_certificates(folder: Path, openssl: Path) -> None:
    (folder / "audit.yaml").write_text(_AUDIT_POLICY)
    ca = ("-x509", "-subj", "/CN=test-ca", "-keyout", "ca.key", "-out", "ca.crt", "-days", "30")
    _openssl(folder, openssl, "req", "-newkey", "rsa:2048", "-nodes", *ca)
    _sign(folder, openssl, "server", "/CN=kube-apiserver", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    _sign(folder, openssl, "admin", "/O=system:masters/CN=admin", "extendedKeyUsage=clientAuth")


def _sign(folder: Path, openssl: Path, name: str, subject: str, extension: str) -> None:
    (folder / f"{name}.ext").write_text(f"{extension}\n")
    request = ("-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
    _openssl(folder, openssl, "req", "-new", "-newkey", "rsa:2048", "-nodes", *request)
    authority = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", f"{name}.ext")
    _openssl(folder, openssl, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *authority)


def _openssl(folder: Path, openssl: Path, *arguments: str) -> None:
    subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
