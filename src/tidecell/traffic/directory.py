"""Where a request goes, by its head and the model that its body names. Pure: a view of one table.

In this order: the router's own ``/health``; host ``<service>.localhost``; ``/services/<service>/…`` and
the routes' own prefixes (longest first), both stripped; ``/v1/models``; ``/v1/…`` by model. Anything else
is 404.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import msgspec

from tidecell.traffic.http1 import ProtocolError, RequestHead
from tidecell.traffic.peek import NO_PEEK, Found, peek
from tidecell.traffic.replies import Reply, error, json_reply
from tidecell.traffic.table import Table

_LOCAL_HOST = ".localhost"
# What was worked out for a token or a target is kept; a flood of different ones only empties the memory.
MAX_REMEMBERED = 4096


class Target(msgspec.Struct, frozen=True):
    """A service, and the path to ask it for."""

    service: str
    path: bytes


class ByModel(msgspec.Struct, frozen=True):
    """The body has to say which model is meant.

    Attributes:
        targets: Where each model leads.
    """

    path: bytes
    targets: dict[str, Target] = {}


class Directory:
    """Answers for one table; a new table gets a new directory.

    Args:
        table: The table.
        created_s: Unix time shown for its models.

    Attributes:
        wants_tokens: Whether requests carry a token for the router; it is then not passed on to replicas.
        known: What ``enter`` found before, by token, host and target.
    """

    def __init__(self, table: Table, created_s: int = 0) -> None:
        self.table = table
        self._services = {route.service: route for route in table.routes}
        self._models: dict[str, str] = {}
        for route in table.routes:
            for model in route.models:
                self._models.setdefault(model, route.service)
        for alias, model in table.aliases.items():
            if model in self._models:
                self._models.setdefault(alias, self._models[model])
        prefixes = [(route.prefix.encode(), route.service) for route in table.routes if route.prefix]
        self._prefixes = sorted(prefixes, key=lambda pair: -len(pair[0]))
        self._tokens = [token.lower().encode() for token in table.tokens]
        self.wants_tokens = bool(self._tokens)
        self._created_s = created_s
        self.known: dict[tuple[bytes, bytes, bytes], tuple[str, Target | ByModel]] = {}

    def authorize(self, head: RequestHead) -> str | Reply:
        """Return the key (SHA-256 of the token) if the request may pass, else the refusal.

        Compares in constant time, every token.
        """
        if not self._tokens or (head.target == b"/health" and not self._service_of_host(head.host)):
            return ""
        scheme, _, token = head.authorization.partition(b" ")
        digest = hashlib.sha256(token.strip(b" ")).hexdigest().encode()
        matches = [hmac.compare_digest(digest, known) for known in self._tokens]
        if scheme.lower() == b"bearer" and any(matches):
            return digest.decode()
        message = "a bearer token is needed: send 'Authorization: Bearer TOKEN' with a token of this cell"
        return error(401, message, "unauthorized", code="invalid_api_key")

    def enter(self, head: RequestHead) -> tuple[str, Target | ByModel | Reply]:
        """Return the key of a request and where it goes, or the refusal.

        What was found once for a token, host and target is in ``known`` from then on, where it may be looked
        for first. Refusals are not.
        """
        key = self.authorize(head)
        if not isinstance(key, str):
            return "", key
        where = self.resolve(head)
        if not isinstance(where, Reply):
            if len(self.known) >= MAX_REMEMBERED:
                self.known.clear()
            self.known[head.authorization, head.host, head.target] = (key, where)
        return key, where

    def resolve(self, head: RequestHead) -> Target | ByModel | Reply:
        """Return where the request goes as far as its head says it."""
        service = self._service_of_host(head.host)
        if service:
            return self._target(service, head.target)
        path, _, _query = head.target.partition(b"?")
        if path == b"/health":
            return self._read_only(head, json_reply({"status": "ok"}))
        if path.startswith(b"/services/"):
            return self._by_name(head.target)
        for prefix, name in self._prefixes:
            if path.startswith(prefix):
                return Target(name, head.target[len(prefix) - 1 :])
        if path in (b"/v1/models", b"/v1/models/"):
            return self._read_only(head, json_reply(self.models()))
        if path.startswith(b"/v1/models/"):
            return self._read_only(head, self._model(path[len(b"/v1/models/") :]))
        if path.startswith(b"/v1/"):
            targets = {model: Target(service, head.target) for model, service in self._models.items()}
            return ByModel(head.target, targets)
        known = "/v1/…, /services/<name>/… and /health"
        return error(404, f"nothing is served at {path.decode('ascii')!r}; known are {known}", "not_found")

    def by_model(self, target: ByModel, body: bytes) -> tuple[Target | Reply, Found]:
        """Return where a ``/v1`` request goes, and what its body says."""
        found: Found = NO_PEEK
        if body:
            try:
                found = peek(body)
            except ProtocolError as problem:
                return error(problem.status, problem.message, "bad_request"), found
        model = found[0]
        if not model:
            return self._without_model(target), found
        where = target.targets.get(model)
        return (self._unknown_model(model) if where is None else where), found

    def service_of(self, model: str) -> str:
        """Return the service that serves a model or alias; empty: none does."""
        return self._models.get(model, "")

    def models(self) -> dict[str, Any]:
        """Return the list of models as OpenAI's API shows it."""
        return {"object": "list", "data": [self._card(model) for model in sorted(self._models)]}

    def _card(self, model: str) -> dict[str, Any]:
        return {"id": model, "object": "model", "created": self._created_s, "owned_by": "tidecell"}

    def _model(self, raw_name: bytes) -> Reply:
        name = raw_name.decode("ascii")
        return json_reply(self._card(name)) if name in self._models else self._unknown_model(name)

    def _read_only(self, head: RequestHead, reply: Reply) -> Reply:
        if head.method in (b"GET", b"HEAD"):
            return reply
        message = f"{head.method.decode()} is not allowed here; allowed are GET and HEAD"
        return error(405, message, "method_not_allowed")

    def _service_of_host(self, host: bytes) -> str:
        name, _, _port = host.decode("ascii").lower().partition(":")
        return name[: -len(_LOCAL_HOST)] if name.endswith(_LOCAL_HOST) else ""

    def _by_name(self, target: bytes) -> Target | Reply:
        """Split ``/services/<name>/rest?query``; the rest is what the replica sees."""
        rest = target[len(b"/services/") :]
        cut = next((i for i, byte in enumerate(rest) if byte in b"/?"), len(rest))
        path = rest[cut:]
        return self._target(rest[:cut].decode("ascii"), path if path.startswith(b"/") else b"/" + path)

    def _target(self, service: str, path: bytes) -> Target | Reply:
        if service in self._services:
            return Target(service, path)
        message = f"no service {service!r}; {_known('services', self._services)}"
        return error(404, message, "not_found", code="service_not_found")

    def _without_model(self, target: ByModel) -> Target | Reply:
        serving = set(self._models.values())
        if len(serving) == 1:
            return Target(serving.pop(), target.path)
        message = f"the request names no model; {_known('models', self._models)}"
        return error(400, message, "bad_request", code="model_required", param="model")

    def _unknown_model(self, model: str) -> Reply:
        message = f"the model {model!r} does not exist; {_known('models', self._models)}"
        return error(404, message, "not_found", code="model_not_found", param="model")


def _known(noun: str, names: dict[str, Any]) -> str:
    return f"known {noun}: {', '.join(sorted(names))}" if names else f"no {noun} are served now"
