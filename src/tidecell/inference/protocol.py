"""The OpenAI API's requests: JSON to checked values, mistakes to OpenAI's error shape.

What is not supported is refused by name; nothing is ignored that would change an answer. Fields that
only label a request (``user``, ``metadata`` and the like) are accepted. Beyond OpenAI's, sampling
takes ``top_k``, ``min_p``, ``repetition_penalty``, ``ignore_eos`` and ``stop_token_ids``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from tidecell.inference.params import SamplingParams

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20

# Values that ask for what we do anyway; anything else under these names is refused.
_ONLY: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
}
_REFUSED = (
    "audio", "moderation", "prediction", "reasoning_effort", "verbosity", "web_search_options",
)  # fmt: skip
_LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")


class ApiError(Exception):
    """A request that gets an error for an answer.

    Attributes:
        status: HTTP status.
        message, type, param, code: As in OpenAI's error object.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
        type: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.status = status
        self.type = type

    def body(self) -> dict[str, Any]:
        """Return the JSON to answer with."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Common(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1)] = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0)] = 1.0
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] = {}
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    seed: int | None = None
    stop: str | list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None


_Body = TypeVar("_Body", bound=_Common)


class ChatBody(_Common, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a chat completion, as it is on the wire."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class CompletionBody(_Common, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of a completion, as it is on the wire."""

    prompt: str | list[Any]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request, checked; of messages and prompts the one is given that its route takes.

    Attributes:
        model: Name of the model.
        messages: Pairs of role and content as dictionaries, for chat.
        prompts: Texts or token ids, one answer (times ``n``) each, for completions.
        params: Sampling; ``max_tokens`` is 0 when the request leaves it open.
        seeded: Whether the request gave a seed.
        num_choices: Answers per prompt.
        stream: Whether to answer in events.
        include_usage: Whether the stream ends with a usage event.
    """

    model: str
    messages: tuple[dict[str, str], ...] = ()
    prompts: tuple[str | tuple[int, ...], ...] = ()
    params: SamplingParams
    seeded: bool
    num_choices: int
    stream: bool
    include_usage: bool


def parse_chat(raw: bytes) -> Ask:
    """Return a chat completion request.

    Raises:
        ApiError: It is not one, or asks for what is not supported.
    """
    body = _decode(raw, ChatBody)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs to be true", param="top_logprobs")
    messages = tuple(_message(i, message) for i, message in enumerate(body.messages))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_completion_tokens or body.max_tokens or 0
    return _ask(body, max_tokens, logprobs, messages=messages)


def parse_completion(raw: bytes) -> Ask:
    """Return a completion request; without ``max_tokens`` it gets 16, as at OpenAI.

    Raises:
        ApiError: It is not one, or asks for what is not supported.
    """
    body = _decode(raw, CompletionBody)
    return _ask(body, body.max_tokens or 16, body.logprobs, prompts=_prompts(body.prompt))


def _ask(
    body: _Common,
    max_tokens: int,
    logprobs: int | None,
    *,
    messages: tuple[dict[str, str], ...] = (),
    prompts: tuple[str | tuple[int, ...], ...] = (),
) -> Ask:
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options needs stream to be true", param="stream_options")
    if body.stream_options is not None and body.stream_options.include_obfuscation:
        raise _unsupported("stream_options.include_obfuscation", "true")
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_k=max(body.top_k, 0),
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_bias(body.logit_bias),
        seed=body.seed or 0,
        stop=_stops(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        logprobs=logprobs,
    )
    return Ask(
        model=body.model,
        messages=messages,
        prompts=prompts,
        params=params,
        seeded=body.seed is not None,
        num_choices=body.n,
        stream=body.stream,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
    )


def _decode(raw: bytes, type_: type[_Body]) -> _Body:
    """Return the body as ``type_``; null means not given."""
    try:
        data = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise ApiError(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise ApiError(f"the body is not a JSON object but {_kind(data)}", code="invalid_json")
    given = {key: value for key, value in data.items() if value is not None}
    _refuse_unsupported(given, type_)
    try:
        return msgspec.convert(given, type_)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error


def _refuse_unsupported(given: dict[str, Any], type_: type[_Common]) -> None:
    """Refuse what is known and not supported, and what is unknown; drop what changes nothing."""
    known = {field.name for field in msgspec.structs.fields(type_)}
    for key in list(given):
        if key in known:
            continue
        if key not in _LABELS:
            value = given[key]
            if key in _REFUSED or (key in _ONLY and value not in _ONLY[key]):
                raise _unsupported(key, msgspec.json.encode(value).decode())
            if key not in _ONLY:
                raise ApiError(f"unknown parameter {key!r}", param=key, code="unknown_parameter")
        del given[key]


def _unsupported(key: str, shown: str) -> ApiError:
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    allowed = _ONLY.get(key)
    hint = "leave it out" if allowed is None else f"leave it out, or give {' or '.join(map(repr, allowed))}"
    return ApiError(
        f"parameter {key!r} is not supported here (got {shown}); {hint}",
        param=key,
        code="unsupported_parameter",
    )


def _invalid(error: msgspec.ValidationError) -> ApiError:
    text = str(error)
    place = re.search(r" - at `\$\.?(.*?)`$", text)
    missing = re.search(r"missing required field `(\w+)`", text)
    param = missing.group(1) if missing else (place.group(1) if place else None)
    message = text[: place.start()] if place else text
    return ApiError(f"{param}: {message}" if param else message, param=param, code="invalid_value")


def _message(index: int, message: Mapping[str, Any]) -> dict[str, str]:
    """Return one message with role and text alone."""
    where = f"messages[{index}]"
    role = message.get("role")
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise ApiError(
            f"{where}.role is {role!r}; system, developer, user and assistant are supported",
            param=f"{where}.role",
            code="invalid_value",
        )
    for key in ("tool_calls", "function_call", "audio"):
        if message.get(key):
            raise _unsupported(f"{where}.{key}", msgspec.json.encode(message[key]).decode())
    return {"role": role, "content": _content(f"{where}.content", message.get("content"))}


def _content(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = []
        for part in content:
            is_text = isinstance(part, dict) and part.get("type") == "text"
            if not is_text or not isinstance(part.get("text"), str):
                raise ApiError(
                    f"{where} has a part that is not text; this model reads text alone",
                    param=where,
                    code="unsupported_content",
                )
            texts.append(part["text"])
        return "".join(texts)
    raise ApiError(f"{where} is {_kind(content)}, not a string", param=where, code="invalid_value")


def _prompts(prompt: str | list[Any]) -> tuple[str | tuple[int, ...], ...]:
    """Return the prompts: a text, texts, token ids, or lists of token ids."""
    if isinstance(prompt, str):
        return (prompt,)
    if prompt and all(_is_id(item) for item in prompt):
        return (tuple(prompt),)
    if not prompt or not all(
        isinstance(item, str) or (isinstance(item, list) and item and all(map(_is_id, item)))
        for item in prompt
    ):
        raise ApiError(
            "prompt must be a string, strings, token ids, or lists of token ids",
            param="prompt",
            code="invalid_value",
        )
    return tuple(item if isinstance(item, str) else tuple(item) for item in prompt)


def _bias(given: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    try:
        return tuple(sorted((int(token), value) for token, value in given.items()))
    except ValueError as error:
        raise ApiError(
            "logit_bias must map token ids to numbers", param="logit_bias", code="invalid_value"
        ) from error


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not text for text in stops):
        raise ApiError("stop must not be an empty string", param="stop", code="invalid_value")
    return stops


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
