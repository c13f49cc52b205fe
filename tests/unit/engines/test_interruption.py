"""Notices that a machine will be taken away, as providers write them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tidecell.engines.interruption import deadline_of, read_source


@pytest.mark.parametrize(
    ("text", "left_s"),
    [
        ("TRUE", 30.0),
        ("12.5", 12.5),
        ('{"action": "terminate", "time": "2026-11-24T10:02:00Z"}', 120.0),
        ('{"action": "terminate"}', 30.0),
        ("{", 30.0),
    ],
)
def test_what_is_left_is_read_from_the_notice(text: str, left_s: float) -> None:
    now_s = 1795514400.0  # 2026-11-24T10:00:00Z
    assert deadline_of(text, now_s) == now_s + left_s


def test_a_file_is_a_notice_once_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "notice"
    assert read_source(str(path)) is None
    path.write_text("")
    assert read_source(str(path)) == "TRUE"
    path.write_text("20\n")
    assert read_source(str(path)) == "20"


@pytest.fixture
def service() -> Iterator[tuple[str, dict[str, str]]]:
    answers: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path) if self.headers["Metadata-Flavor"] == "Google" else None
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_is_asked_as_providers_want_it(service: tuple[str, dict[str, str]]) -> None:
    url, answers = service
    assert read_source(f"{url}/preempted") is None, "404"
    answers["/preempted"] = "FALSE"
    assert read_source(f"{url}/preempted") is None
    answers["/preempted"] = "TRUE"
    assert read_source(f"{url}/preempted") == "TRUE"
    assert read_source("http://127.0.0.1:9/nobody") is None
