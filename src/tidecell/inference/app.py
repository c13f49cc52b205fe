"""The OpenAI API over one engine, as a plain ASGI application.

Routes: ``/v1/models``, ``/v1/chat/completions``, ``/v1/completions``, ``/health``, ``/metrics`` and
``/load``. A client that goes away cancels its request at once. Nothing here imports torch: the port
answers while the model is still being loaded.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from tidecell.inference.answers import Answer, ChatAnswer, CompletionAnswer, Piece, Usage
from tidecell.inference.meters import render
from tidecell.inference.outputs import Finish, Output, Sink
from tidecell.inference.params import SamplingParams, choice_seed
from tidecell.inference.protocol import ApiError, Ask, parse_chat, parse_completion
from tidecell.structs.errors import DataError

if TYPE_CHECKING:  # importing the engine imports torch
    from tidecell.inference.loading import Loaded

MAX_BODY_BYTES = 16 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_JSON = (b"content-type", b"application/json")


class App:
    """One model behind OpenAI's routes.

    Args:
        model_id: Name that requests must ask for.
        fingerprint: Names weights and version in answers.

    Attributes:
        loaded: The engine; None until it is ready.
    """

    def __init__(self, model_id: str, fingerprint: str) -> None:
        self.model_id = model_id
        self.loaded: Loaded | None = None
        self._fingerprint = fingerprint
        self._created = int(time.time())
        self._gets = {
            "/health": self._health,
            "/metrics": self._metrics,
            "/load": self._load,
            "/v1/models": self._models,
            f"/v1/models/{model_id}": self._model,
        }
        self._posts = {
            "/v1/chat/completions": (parse_chat, ChatAnswer),
            "/v1/completions": (parse_completion, CompletionAnswer),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        try:
            if method in ("GET", "HEAD") and path in self._gets:
                await self._gets[path](send)
            elif method == "POST" and path in self._posts:
                await self._generate(path, receive, send)
            else:
                raise self._no_route(method, path)
        except ApiError as error:
            await _respond(send, error.status, error.body())

    def ongoing(self) -> int:
        """Return the requests in the engine, waiting or running."""
        if self.loaded is None:
            return 0
        load = self.loaded.engine.load()
        return load.running + load.waiting

    # -- small routes

    async def _health(self, send: Send) -> None:
        if self.loaded is None:
            await _respond(send, 503, {"status": "loading", "model": self.model_id})
        else:
            await _respond(send, 200, {"status": "ready", "model": self.model_id})

    async def _models(self, send: Send) -> None:
        await _respond(send, 200, {"object": "list", "data": [self._card()]})

    async def _model(self, send: Send) -> None:
        await _respond(send, 200, self._card())

    def _card(self) -> dict[str, Any]:
        card = {"id": self.model_id, "object": "model", "created": self._created, "owned_by": "tidecell"}
        return card if self.loaded is None else {**card, "max_model_len": self.loaded.max_context}

    async def _load(self, send: Send) -> None:
        loaded = self._ready()
        load, meters = loaded.engine.load(), loaded.engine.meters
        body = {
            "ongoing": load.running + load.waiting,
            "running": load.running,
            "waiting": load.waiting,
            "tokens": meters.generated_tokens,
            "prompt_tokens": meters.prompt_tokens,
            "kv_blocks_used": load.cache.used_blocks,
            "kv_blocks": load.cache.num_blocks,
        }
        await _respond(send, 200, body)

    async def _metrics(self, send: Send) -> None:
        loaded = self._ready()
        load = loaded.engine.load()
        gauges = {
            "requests_running": ("Requests that hold KV blocks.", load.running),
            "requests_waiting": ("Requests that are not admitted.", load.waiting),
            "kv_blocks_used": ("KV blocks in use.", load.cache.used_blocks),
            "kv_blocks": ("KV blocks in all.", load.cache.num_blocks),
        }
        counters = {
            "prefix_query_tokens_total": ("Tokens looked up in the prefix cache.", load.cache.prefix_queries),
            "prefix_hit_tokens_total": ("Tokens found in the prefix cache.", load.cache.prefix_hits),
            "preemptions_total": ("Requests put back for want of KV blocks.", load.preemptions),
        }
        text = render(loaded.engine.meters, gauges, counters, self.model_id)
        await _respond(send, 200, text.encode(), (b"content-type", b"text/plain; version=0.0.4"))

    def _no_route(self, method: str, path: str) -> ApiError:
        if path in self._gets or path in self._posts:
            allowed = "GET" if path in self._gets else "POST"
            return ApiError(f"{method} is not allowed on {path}; {allowed} is", status=405)
        if path.startswith("/v1/models/"):
            return self._unknown_model(path.removeprefix("/v1/models/"))
        known = ", ".join([*self._gets, *self._posts])
        return ApiError(f"there is no {method} {path}; known are {known}", status=404, code="unknown_url")

    def _unknown_model(self, name: str) -> ApiError:
        return ApiError(
            f"the model {name!r} does not exist here; {self.model_id!r} does",
            param="model",
            code="model_not_found",
            status=404,
        )

    def _ready(self) -> Loaded:
        if self.loaded is None:
            raise ApiError(
                f"the model {self.model_id!r} is being loaded",
                code="loading",
                status=503,
                type="server_error",
            )
        return self.loaded

    # -- generation

    async def _generate(self, path: str, receive: Receive, send: Send) -> None:
        parse, answer_type = self._posts[path]
        ask = parse(await _read_body(receive))
        if ask.model != self.model_id:
            raise self._unknown_model(ask.model)
        loaded = self._ready()
        job = _Generation(loaded, _prompts(loaded, ask), ask)
        answer = answer_type(
            secrets.token_hex(12),
            self.model_id,
            int(time.time()),
            loaded.codec,
            self._fingerprint,
            ask.params.logprobs is not None,
        )
        work = asyncio.ensure_future(job.stream(answer, send) if ask.stream else job.collect(answer, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


class _Generation:
    """One API request: several prompts, several answers to each."""

    def __init__(self, loaded: Loaded, prompts: Sequence[Sequence[int]], ask: Ask) -> None:
        self._loaded = loaded
        self._ask = ask
        self._plans = [
            (prompt, self._params(prompt, choice)) for prompt in prompts for choice in range(ask.num_choices)
        ]
        self._prompt_tokens = sum(map(len, prompts))
        self._generated = [0] * len(self._plans)

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self._prompt_tokens, sum(self._generated))

    async def collect(self, answer: Answer, send: Send) -> None:
        """Answer when everything is there."""
        texts = [""] * len(self._plans)
        tokens: list[list[Any]] = [[] for _ in self._plans]
        finishes: list[str | None] = [None] * len(self._plans)
        async for batch in self._outputs():
            for index, output in batch:
                texts[index] += output.text
                tokens[index] += output.choices
                finishes[index] = _finish_of(output)
        choices = [Piece(i, texts[i], tokens[i], finishes[i]) for i in range(len(texts))]
        await _respond(send, 200, answer.whole(choices, self.usage))

    async def stream(self, answer: Answer, send: Send) -> None:
        """Answer with events as tokens come."""
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with_usage = self._ask.include_usage
        await _send_events(send, answer.opening(len(self._plans), with_usage))
        try:
            async for batch in self._outputs():
                pieces = [Piece(i, out.text, out.choices, _finish_of(out)) for i, out in batch]
                shown = [p for p in pieces if p.text or p.finish or (answer.wants_logprobs and p.tokens)]
                await _send_events(send, [answer.chunk(piece, with_usage) for piece in shown])
        except ApiError as error:
            await _send_events(send, [error.body()])
        else:
            if with_usage:
                await _send_events(send, [answer.usage_chunk(self.usage)])
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _outputs(self) -> AsyncIterator[list[tuple[int, Output]]]:
        """Submit everything and yield what comes, in batches, with the index of its choice.

        Whoever stops listening, for whatever reason, cancels what is not finished.
        """
        inbox: asyncio.Queue[tuple[int, Output]] = asyncio.Queue()
        engine = self._loaded.engine
        live: dict[int, int] = {}
        try:
            for index, (prompt, params) in enumerate(self._plans):
                live[index] = engine.submit(prompt, params, _sink(inbox, index))
            while live:
                batch = [await inbox.get()]
                while not inbox.empty():
                    batch.append(inbox.get_nowait())
                for index, output in batch:
                    self._generated[index] = output.num_tokens or self._generated[index]
                    if output.finish is not None:
                        del live[index]
                yield batch
        finally:
            for request_id in live.values():
                engine.cancel(request_id)

    def _params(self, prompt: Sequence[int], choice: int) -> SamplingParams:
        """Return one choice's parameters: a seed of its own, and room that is really there.

        Raises:
            ApiError: Prompt and answer exceed the model's context.
        """
        params = self._ask.params
        context = self._loaded.max_context
        if not prompt:
            raise ApiError("the prompt has no tokens", param="prompt", code="invalid_value")
        if len(prompt) + max(params.max_tokens, 1) > context:
            wanted = f" and {params.max_tokens} for the answer" if params.max_tokens else ""
            raise ApiError(
                f"this model's context is {context} tokens; {len(prompt)} are in the prompt{wanted}",
                param="prompt" if self._ask.prompts else "messages",
                code="context_length_exceeded",
            )
        seed = params.seed if self._ask.seeded else secrets.randbits(63)
        return msgspec.structs.replace(
            params, seed=choice_seed(seed, choice), max_tokens=params.max_tokens or context - len(prompt)
        )


def _prompts(loaded: Loaded, ask: Ask) -> list[list[int]]:
    """Return the token ids of a request's prompts.

    Raises:
        ApiError: A token id is out of range, or the model has no chat format.
    """
    codec = loaded.codec
    given = [i for i, _ in ask.params.logit_bias] + list(ask.params.stop_token_ids)
    given += [token for prompt in ask.prompts if isinstance(prompt, tuple) for token in prompt]
    wrong = [token for token in given if not 0 <= token < codec.vocab_size]
    if wrong:
        raise ApiError(
            f"token id {wrong[0]} does not exist; ids are below {codec.vocab_size}", code="invalid_value"
        )
    if ask.messages:
        try:
            return [codec.encode_chat(ask.messages)]
        except DataError as error:
            raise ApiError(
                f"{error.message}; {error.hint}", param="messages", code="no_chat_format"
            ) from error
    return [codec.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in ask.prompts]


def _finish_of(output: Output) -> str | None:
    """Return OpenAI's finish reason.

    Raises:
        ApiError: The engine failed or stopped.
    """
    if output.finish in (Finish.ERROR, Finish.CANCELLED):
        message = output.error or "the replica stops; ask again"
        status = 500 if output.finish is Finish.ERROR else 503
        raise ApiError(message, status=status, type="server_error", code=f"engine_{output.finish}")
    return str(output.finish) if output.finish else None


def _sink(inbox: asyncio.Queue[tuple[int, Output]], index: int) -> Sink:
    def take(output: Output) -> None:
        inbox.put_nowait((index, output))

    return take


async def _read_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError("the client left", status=499)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise ApiError(f"the body exceeds {MAX_BODY_BYTES} bytes", status=413, code="body_too_large")
        if not message.get("more_body"):
            return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _respond(
    send: Send, status: int, body: dict[str, Any] | bytes, kind: tuple[bytes, bytes] = _JSON
) -> None:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = [kind, (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def _send_events(send: Send, events: Sequence[dict[str, Any]]) -> None:
    if events:
        data = b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events)
        await send({"type": "http.response.body", "body": data, "more_body": True})
