"""Models that a cell serves, reached through its router."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator, Sequence
from random import Random
from typing import Any

import httpx

from tidecell.client.client import Client
from tidecell.client.throttle import AdaptiveThrottle
from tidecell.structs.errors import CellUnreachable, TidecellError

Messages = Sequence[dict[str, str]]


class ServedError(TidecellError):
    """The router or a replica refused a request.

    Attributes:
        code: OpenAI's error code, where there is one.
    """

    def __init__(self, message: str, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


OVERLOADED = (429, 503)  # the router had no room for a request, whatever its reason


class Served:
    """A cell's router, as OpenAI clients see it.

    Args:
        router_url: Without ``/v1``.
        token: The cell's bearer token.
    """

    def __init__(self, router_url: str, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        # An answer may take long to begin: requests wait in the router for a replica. No proxy from the
        # environment must see a loopback call, nor its token.
        timeout = httpx.Timeout(30.0, read=300.0)
        self._http = httpx.Client(base_url=router_url, headers=headers, timeout=timeout, trust_env=False)
        self._throttle = AdaptiveThrottle(Random())

    @classmethod
    def from_home(cls) -> Served:
        """Return the router of the cell at home.

        Raises:
            CellUnreachable: No cell is up.
        """
        with Client.from_home() as client:
            return cls(client.router_url, client.token)

    def close(self) -> None:
        """Close connections."""
        self._http.close()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def models(self) -> list[str]:
        """Return the names of the models that are served."""
        try:
            answer = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if answer.is_error:
            raise _refused(answer.status_code, answer.content)
        return [model["id"] for model in answer.json()["data"]]

    def chat(self, model: str, messages: Messages, params: dict[str, Any]) -> Generator[str, None, None]:
        """Yield an answer's text as it comes; who stops listening cancels it."""
        body = {"model": model, "messages": list(messages), **params}
        for choice in self._choices("/v1/chat/completions", body):
            yield choice["delta"].get("content") or ""

    def complete(self, model: str, prompt: str, params: dict[str, Any]) -> Generator[str, None, None]:
        """Yield a completion's text as it comes; who stops listening cancels it."""
        for choice in self._choices("/v1/completions", {"model": model, "prompt": prompt, **params}):
            yield choice["text"]

    def _choices(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not self._throttle.allow(time.monotonic()):
            raise ServedError(
                f"held back: of the last {self._throttle.requests} requests the router took "
                f"{self._throttle.accepts}",
                "wait a little; sending more would not help it",
                "held_back",
            )
        try:
            with self._http.stream("POST", path, json={**body, "stream": True}) as answer:
                if answer.status_code not in OVERLOADED:
                    self._throttle.accepted(time.monotonic())
                if answer.is_error:
                    raise _refused(answer.status_code, answer.read())
                for line in answer.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise _refused(answer.status_code, line.removeprefix("data: ").encode())
                    yield from event["choices"]
        except httpx.HTTPError as error:
            raise _unreachable(error) from error


def _unreachable(error: Exception) -> CellUnreachable:
    return CellUnreachable(
        f"the router does not answer ({type(error).__name__})",
        "tide up starts it again; tide ps shows replicas",
    )


def _refused(status: int, content: bytes) -> ServedError:
    try:
        error = json.loads(content)["error"]
        return ServedError(str(error["message"]), code=str(error.get("code") or ""))
    except (ValueError, KeyError, TypeError):
        return ServedError(f"the router answered {status}: {content[:200].decode(errors='replace')}")
