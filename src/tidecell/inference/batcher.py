"""Continuous batching: which tokens of which requests the next forward pass computes.

Requests join and leave between any two passes. A pass takes one token of every decoding request, then
chunks of prompts up to a budget, so that a long prompt delays nobody's next token by much (Orca, OSDI
2022; chunked prefill: Sarathi-Serve, OSDI 2024). Blocks of the KV cache are taken as tokens need them;
where they run out, the request that was admitted last goes back to the queue and is recomputed later.

The batcher knows token ids only. It reads no clock; the same calls give the same plans.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from tidecell.inference.kv_cache import KVCache
from tidecell.structs.errors import InvariantError


class RequestState(enum.StrEnum):
    """Where a request is."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"


class Chunk(msgspec.Struct, frozen=True):
    """Tokens of one request in one forward pass.

    Attributes:
        request_id: Whose tokens they are.
        tokens: The tokens to compute.
        start: Position of the first of them.
        blocks: The request's KV blocks, enough for ``start + len(tokens)`` tokens.
        samples: Whether a next token is to be chosen after the last one of them.
    """

    request_id: int
    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    samples: bool


class Request:
    """One sequence that grows: a prompt, and the tokens generated after it."""

    __slots__ = ("max_tokens", "num_computed", "prompt_len", "request_id", "state", "tokens")

    def __init__(self, request_id: int, prompt: Sequence[int], max_tokens: int) -> None:
        self.request_id = request_id
        self.tokens = list(prompt)
        self.prompt_len = len(prompt)
        self.max_tokens = max_tokens
        self.num_computed = 0
        self.state = RequestState.WAITING

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.prompt_len


class Batcher:
    """Requests and the KV blocks they hold.

    Args:
        cache: Block table; its blocks are this batcher's alone.
        max_batch: Requests in one forward pass at most.
        prefill_budget: Prompt tokens in one forward pass at most.
    """

    def __init__(self, cache: KVCache, max_batch: int, prefill_budget: int) -> None:
        if max_batch < 1 or prefill_budget < 1:
            raise ValueError(
                f"max_batch and prefill_budget must be at least 1, not {max_batch} and {prefill_budget}"
            )
        self.cache = cache
        self.max_batch = max_batch
        self.prefill_budget = prefill_budget
        self._waiting: OrderedDict[int, Request] = OrderedDict()
        self._running: OrderedDict[int, Request] = OrderedDict()
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        """Requests that are not admitted."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self._running)

    def state(self, request_id: int) -> RequestState | None:
        """Return where a request is, None when it is not here (any more)."""
        request = self._running.get(request_id) or self._waiting.get(request_id)
        return request.state if request else None

    def add(self, request_id: int, prompt: Sequence[int], max_tokens: int) -> None:
        """Queue a request.

        Raises:
            ValueError: The prompt is empty, ``max_tokens`` is below 1, or both together could never fit.
        """
        self.check(len(prompt), max_tokens)
        if self.state(request_id):
            raise InvariantError(f"request {request_id} is here already")
        self._waiting[request_id] = Request(request_id, prompt, max_tokens)

    def check(self, num_prompt_tokens: int, max_tokens: int) -> None:
        """Raise ``ValueError`` for a request that could never run; safe to call from any thread."""
        if num_prompt_tokens < 1 or max_tokens < 1:
            raise ValueError(
                f"a request needs a token and room for one, not {num_prompt_tokens} and {max_tokens}"
            )
        needed = self.cache.blocks_for(num_prompt_tokens + max_tokens)
        if needed > self.cache.num_blocks:
            raise ValueError(f"{needed} KV blocks are needed; there are {self.cache.num_blocks}")

    def remove(self, request_id: int) -> None:
        """Forget a request that finished or was cancelled; its blocks are free at once."""
        if self._waiting.pop(request_id, None) is None and self._running.pop(request_id, None) is not None:
            self.cache.close(request_id)

    def plan(self) -> list[Chunk]:
        """Return the next forward pass: decoding requests first, each in the order of admission.

        Empty when there is nothing to do. Every chunk's request stays as it is until ``commit``.
        """
        budget = self.prefill_budget
        chunks: list[Chunk] = []
        for request in list(self._running.values()):
            if request.state is RequestState.DECODE and self._make_room(request):
                chunks.append(self._chunk(request, 1))
        for request in list(self._running.values()):
            if request.state is RequestState.PREFILL and budget > 0:
                chunks.append(self._chunk(request, budget))
                budget -= len(chunks[-1].tokens)
        while budget > 0 and (admitted := self._admit()) is not None:
            chunks.append(self._chunk(admitted, budget))
            budget -= len(chunks[-1].tokens)
        return chunks

    def commit(self, chunks: Sequence[Chunk], next_tokens: dict[int, int]) -> None:
        """Record a forward pass.

        Args:
            chunks: What ``plan`` returned.
            next_tokens: For each request whose chunk ``samples``, the token chosen after it.
        """
        for chunk in chunks:
            request = self._running.get(chunk.request_id)
            if request is None:  # cancelled during the pass
                continue
            request.num_computed = chunk.start + len(chunk.tokens)
            self.cache.commit(chunk.request_id, request.tokens, request.num_computed)
            if chunk.samples:
                request.state = RequestState.DECODE
                request.tokens.append(next_tokens[chunk.request_id])

    def _admit(self) -> Request | None:
        """Take in the first waiting request if there is a place, and room for all its tokens and one more."""
        if not self._waiting or len(self._running) >= self.max_batch:
            return None
        request = next(iter(self._waiting.values()))
        request.num_computed = self.cache.open(request.request_id, request.tokens)
        if not self.cache.grow(request.request_id, len(request.tokens) + 1):
            self.cache.close(request.request_id)
            return None
        del self._waiting[request.request_id]
        request.state = RequestState.PREFILL
        self._running[request.request_id] = request
        return request

    def _make_room(self, request: Request) -> bool:
        """Give a decoding request room for its next token, at the cost of those admitted later.

        Returns:
            False if the request itself had to go back to the queue.
        """
        while request.request_id in self._running:
            if self.cache.grow(request.request_id, len(request.tokens)):
                return True
            self._preempt(next(reversed(self._running.values())))
        return False

    def _preempt(self, request: Request) -> None:
        """Put a request back to the head of the queue; its tokens stay, its keys and values go."""
        del self._running[request.request_id]
        self.cache.close(request.request_id)
        request.state = RequestState.WAITING
        request.num_computed = 0
        self._waiting[request.request_id] = request
        self._waiting.move_to_end(request.request_id, last=False)
        self.num_preemptions += 1

    def _chunk(self, request: Request, limit: int) -> Chunk:
        start = request.num_computed
        end = min(len(request.tokens), start + limit)
        return Chunk(
            request_id=request.request_id,
            tokens=request.tokens[start:end],
            start=start,
            blocks=self.cache.blocks(request.request_id),
            samples=end == len(request.tokens),
        )
