"""TLS on the router's port: the certificate by name, taken up anew when its file changes."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from router_harness import ReplicaProcess, RouterProcess, completion, read_answer, route
from router_replica import stream_body

from tidecell.structs.errors import RefusedError
from tidecell.traffic.tls import CHECK_EVERY_S, Certificates, Pair

# Made for these tests: one.test and two.test, valid for a hundred years.
DATA = Path(__file__).parent.parent / "data"


def pem(name: str) -> tuple[str, str]:
    return str(DATA / f"tls-{name}.crt"), str(DATA / f"tls-{name}.key")


def connect(port: int, name: str) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=DATA / f"tls-{name}.crt")
    return context.wrap_socket(
        socket.create_connection(("127.0.0.1", port), 20), server_hostname=f"{name}.test"
    )


def test_requests_and_streams_pass_over_tls_with_the_certificate_of_the_name(tmp_path: Path) -> None:
    replica = ReplicaProcess("a")
    router = RouterProcess(tmp_path, "--tls", *pem("one"), "--tls-name", "two.test", *pem("two"))
    try:
        router.put(route(replica.endpoint()))
        for name in ("one", "two"):
            with connect(router.port, name) as sock:
                for _ in range(2):
                    sock.sendall(completion(stream=True, tokens=200))
                    assert read_answer(sock).body == stream_body(200)
        with connect(router.port, "one") as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\nfolded: x\r\n\r\n")
            assert read_answer(sock).status == 400
        with socket.create_connection(("127.0.0.1", router.port), 20) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        router.kill()
        replica.kill()


def test_a_certificate_that_cannot_be_used_is_an_error_with_a_hint(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tidecell.traffic.router", "--home", str(tmp_path)]
    argv += ["--control", str(tmp_path / "c"), "--tls", pem("one")[0], pem("two")[1]]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the certificate cannot be used")
    assert "hint: give PEM files that belong together" in ended.stderr


def handshake(certificates: Certificates) -> bytes | None:
    """Return the certificate that a client gets, over memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = context.wrap_bio(to_client, to_server, server_hostname="one.test")
    server = certificates.context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    return client.getpeercert(binary_form=True)


def test_a_changed_certificate_is_used_by_the_next_handshake_and_a_broken_one_is_not(tmp_path: Path) -> None:
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    ders = {name: ssl.PEM_cert_to_DER_cert(Path(pem(name)[0]).read_text()) for name in ("one", "two")}
    for source, to in zip(pem("one"), (cert, key), strict=True):
        shutil.copy(source, to)
    now_s, said = [0.0], []
    certificates = Certificates([Pair("", cert, key)], lambda: now_s[0], said.append)
    assert handshake(certificates) == ders["one"]
    shutil.copy(pem("two")[0], cert)
    now_s[0] += CHECK_EVERY_S
    assert handshake(certificates) == ders["one"]  # the new certificate came before its key
    assert len(said) == 1
    shutil.copy(pem("two")[1], key)
    now_s[0] += CHECK_EVERY_S
    assert handshake(certificates) == ders["two"]
    with pytest.raises(RefusedError, match="the certificate cannot be used"):
        Certificates([Pair("", tmp_path / "none", key)], lambda: 0.0, said.append)
