"""What an engine puts out: pieces of answers, and how busy it is. No torch is needed to read it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import msgspec

from tidecell.inference.kv_cache import CacheStats
from tidecell.inference.params import Choice


class Finish(enum.StrEnum):
    """Why an answer ended. ``ERROR``: the engine failed; ``CANCELLED``: nobody wants it any more."""

    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"
    CANCELLED = "cancelled"


class Output(msgspec.Struct, frozen=True):
    """What one step produced for one request.

    Attributes:
        text: Text that is settled now; may be empty.
        choices: Tokens chosen in this step, but for one that ended the answer and is no text of it.
        num_tokens: Tokens chosen so far, that one included.
        finish: Set in the last output.
        error: What went wrong, with ``Finish.ERROR``.
    """

    text: str
    choices: tuple[Choice, ...] = ()
    num_tokens: int = 0
    finish: Finish | None = None
    error: str = ""


Sink = Callable[[Output], None]
Deliver = Callable[[Sequence[tuple[Sink, Output]]], None]


class Load(msgspec.Struct, frozen=True):
    """How busy an engine is.

    Attributes:
        running: Requests that hold KV blocks.
        waiting: Requests that are not admitted.
        cache: Counts of the KV cache.
        preemptions: Times a request went back to the queue for want of blocks.
    """

    running: int
    waiting: int
    cache: CacheStats
    preemptions: int


def deliver_directly(outputs: Sequence[tuple[Sink, Output]]) -> None:
    """Call the sinks in the engine's thread."""
    for sink, output in outputs:
        sink(output)
