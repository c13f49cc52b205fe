"""The console's files: served with the right headers, and sufficient to themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

import tidecell.web.app
from tidecell.web.app import routes

STATIC = Path(tidecell.web.app.__file__).parent / "static"
SOURCES = sorted(p for p in STATIC.iterdir() if p.suffix in (".js", ".css", ".html", ".svg"))


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=routes()))


def test_the_front_page_is_html_and_not_kept_by_the_browser(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.text.startswith("<!doctype html>")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_every_file_is_served_with_its_type(client: TestClient, path: Path) -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    answer = client.get(f"/static/{path.name}")
    assert answer.headers["content-type"].partition(";")[0] == types[path.suffix]
    assert answer.content == path.read_bytes()


@pytest.mark.parametrize("path", ["/", "/static/console.js"])
def test_only_own_files_may_be_loaded_and_nobody_may_frame_the_page(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(p.split(" ", 1) for p in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    for kind in ("script-src", "style-src", "img-src", "connect-src"):
        assert policy[kind] == "'self'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", ["nothing.js", "app.py", "..%2fapp.py", "%2e%2e/app.py", "__init__.py"])
def test_other_files_are_not_served(client: TestClient, name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 404


def test_nothing_can_be_sent_to_the_page(client: TestClient) -> None:
    assert client.post("/").status_code == 405


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_no_file_names_another_site(path: Path) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s\"')]*", path.read_text()))
    assert addresses <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".js"], ids=lambda p: p.name)
def test_imports_between_scripts_name_files_that_are_there(path: Path) -> None:
    for name in re.findall(r'from "\./([\w.]+)"', path.read_text()):
        assert (STATIC / name).is_file()


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".js"], ids=lambda p: p.name)
def test_no_script_parses_text_as_html(path: Path) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text())
