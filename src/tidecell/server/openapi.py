"""The API's OpenAPI document, made from the routes and the types of views: nothing is written twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tidecell import __version__


@dataclass(frozen=True)
class Operation:
    """What the document says of one route.

    Attributes:
        parameters: Query parameters: name to (type, description).
        body: Type of the request body, or None.
        answer: Type of the answer; None: plain text.
        many: The answer is ``{"items": [answer]}``.
    """

    method: str
    path: str
    summary: str
    answer: Any = None
    many: bool = False
    body: Any = None
    parameters: tuple[tuple[str, str, str], ...] = ()
    status: int = 200


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error: what happened and what to do."""

    type: str
    message: str
    hint: str = ""
    reason: str = ""


class ErrorAnswer(msgspec.Struct, frozen=True):
    """What every failed call answers."""

    error: ErrorBody


def openapi_document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the document, OpenAPI 3.1."""
    types = [t for o in operations for t in (o.answer, o.body) if t is not None]
    types.append(ErrorAnswer)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs = dict(zip([_key(t) for t in types], schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidecell",
            "version": __version__,
            "description": "The control plane of one cell.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _key(kind: Any) -> str:
    return repr(kind)


def _describe(operation: Operation, refs: dict[str, Any]) -> dict[str, Any]:
    path_names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    parameters = [
        {"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in path_names
    ]
    parameters += [
        {"name": n, "in": "query", "schema": {"type": kind}, "description": text}
        for n, kind, text in operation.parameters
    ]
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(operation),
        "parameters": parameters,
        "responses": {str(operation.status): _answer(operation, refs), "default": _error(refs)},
    }
    if operation.body is not None:
        schema = refs[_key(operation.body)]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _operation_id(operation: Operation) -> str:
    words = [p.strip("{}") for p in operation.path.split("/")[2:]] or ["root"]
    return "_".join([operation.method.lower(), *words])


def _answer(operation: Operation, refs: dict[str, Any]) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": "text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    schema = refs[_key(operation.answer)]
    if operation.many:
        items = {"items": {"type": "array", "items": schema}}
        schema = {"type": "object", "properties": items, "required": ["items"]}
    return {"description": "success", "content": {"application/json": {"schema": schema}}}


def _error(refs: dict[str, Any]) -> dict[str, Any]:
    return {"description": "error", "content": {"application/json": {"schema": refs[_key(ErrorAnswer)]}}}
