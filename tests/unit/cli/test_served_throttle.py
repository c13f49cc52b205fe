"""A client that is mostly refused holds back."""

from __future__ import annotations

import httpx

from tidecell.cli.served import Served, ServedError


def served(status: int, asked: list[int]) -> Served:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(status)
        body = b"data: [DONE]\n\n" if status == 200 else b'{"error": {"message": "no room"}}'
        return httpx.Response(status, content=body)

    one = Served("http://router", "token")
    one.close()
    one._http = httpx.Client(base_url="http://router", transport=httpx.MockTransport(answer))
    return one


def outcomes(one: Served, times: int) -> list[str]:
    codes = []
    for _ in range(times):
        try:
            list(one.complete("m", "p", {}))
            codes.append("ok")
        except ServedError as error:
            codes.append(error.code or "refused")
    return codes


def test_most_requests_are_held_back_while_the_router_refuses_them() -> None:
    asked: list[int] = []
    with served(503, asked) as one:
        codes = outcomes(one, 300)
    assert codes.count("held_back") > 200
    assert len(asked) == 300 - codes.count("held_back")


def test_nothing_is_held_back_while_the_router_takes_them() -> None:
    asked: list[int] = []
    with served(200, asked) as one:
        assert outcomes(one, 100) == ["ok"] * 100


def test_a_request_that_is_wrong_was_still_taken() -> None:
    asked: list[int] = []
    with served(404, asked) as one:
        assert outcomes(one, 50) == ["refused"] * 50
