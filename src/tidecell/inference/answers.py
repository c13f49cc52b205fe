"""The OpenAI API's answers: what an engine put out, as JSON objects.

One class per route; each makes the whole answer, and the pieces of a streamed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidecell.inference.params import Choice
from tidecell.inference.text import TextCodec, TextStream


class Piece(msgspec.Struct, frozen=True):
    """A part of one choice: new text, its tokens, and how the choice ended (None: it goes on)."""

    index: int
    text: str
    tokens: Sequence[Choice] = ()
    finish: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request: those of its prompts, and those generated."""

    prompt_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, int]:
        """Return OpenAI's usage object."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


class Answer:
    """What the answers of both routes share.

    Args:
        answer_id: Unique id, without the route's prefix.
        model: Name of the model.
        created: Unix time in seconds.
        codec: The model's tokenizer.
        fingerprint: Names the weights and the engine's version.
        wants_logprobs: Whether tokens carry log-probabilities.
    """

    prefix = ""
    object = ""
    chunk_object = ""

    def __init__(
        self,
        answer_id: str,
        model: str,
        created: int,
        codec: TextCodec,
        fingerprint: str,
        wants_logprobs: bool,
    ) -> None:
        self.codec = codec
        self.wants_logprobs = wants_logprobs
        self._head = {
            "id": f"{self.prefix}-{answer_id}",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def whole(self, choices: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """Return the answer to a request that is not streamed."""
        made = [self._choice(piece) for piece in choices]
        return {**self._head, "object": self.object, "choices": made, "usage": usage.body()}

    def chunk(self, piece: Piece, with_usage: bool) -> dict[str, Any]:
        """Return one event of a stream; with usage asked for, all but the last say null."""
        body = {**self._head, "object": self.chunk_object, "choices": [self._delta(piece)]}
        return {**body, "usage": None} if with_usage else body

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """Return the event that ends a stream whose usage was asked for."""
        return {**self._head, "object": self.chunk_object, "choices": [], "usage": usage.body()}

    def opening(self, num_choices: int, with_usage: bool) -> list[dict[str, Any]]:
        """Return the events before any text."""
        return []

    def _choice(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError


class ChatAnswer(Answer):
    """Answers of ``/v1/chat/completions``."""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, num_choices: int, with_usage: bool) -> list[dict[str, Any]]:
        """Return an event per choice that names the speaker."""
        events = []
        for index in range(num_choices):
            event = self.chunk(Piece(index, ""), with_usage)
            event["choices"][0]["delta"] = {"role": "assistant", "content": ""}
            events.append(event)
        return events

    def _choice(self, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {
            "index": piece.index,
            "message": message,
            "logprobs": self._logprobs(piece.tokens),
            "finish_reason": piece.finish,
        }

    def _delta(self, piece: Piece) -> dict[str, Any]:
        return {
            "index": piece.index,
            "delta": {"content": piece.text} if piece.text else {},
            "logprobs": self._logprobs(piece.tokens),
            "finish_reason": piece.finish,
        }

    def _logprobs(self, tokens: Sequence[Choice]) -> dict[str, Any] | None:
        if not self.wants_logprobs:
            return None
        entries = [
            {**self._entry(t.token, t.logprob), "top_logprobs": [self._entry(*pair) for pair in t.top]}
            for t in tokens
        ]
        return {"content": entries, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text, data = self.codec.token_text(token), self.codec.token_bytes(token)
        return {"token": text, "logprob": logprob, "bytes": list(data)}


class CompletionAnswer(Answer):
    """Answers of ``/v1/completions``."""

    prefix = "cmpl"
    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._streams: dict[int, tuple[TextStream, int]] = {}

    def _choice(self, piece: Piece) -> dict[str, Any]:
        return {
            "index": piece.index,
            "text": piece.text,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish,
        }

    def _delta(self, piece: Piece) -> dict[str, Any]:
        return self._choice(piece)

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if not self.wants_logprobs:
            return None
        text = self.codec.token_text
        tops = [{text(token): logprob for token, logprob in t.top} for t in piece.tokens]
        return {
            "tokens": [text(t.token) for t in piece.tokens],
            "token_logprobs": [t.logprob for t in piece.tokens],
            "top_logprobs": tops if any(tops) else None,
            "text_offset": [self._offset(piece.index, t.token) for t in piece.tokens],
        }

    def _offset(self, index: int, token: int) -> int:
        """Return where in a choice's text this token begins, and move on past it."""
        stream, at = self._streams.get(index) or (TextStream(), 0)
        self._streams[index] = (stream, at + len(stream.push(self.codec.token_bytes(token))))
        return at
