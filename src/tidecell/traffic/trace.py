"""A trace of requests that simulator and benchmarks read back: sizes, times, and which prompts begin alike.

Nothing in it says what was asked: a prompt stands as the hashes of its blocks, keyed with a secret that is
drawn when the recording starts and kept nowhere, so that nobody can look up a known prompt. Equal beginnings
have equal hashes within one recording, and not beyond it.

One JSON object per admitted request, at its end (``schema`` 1). The first four fields are those of the traces
that Mooncake published.

| field | meaning |
| --- | --- |
| timestamp | of admission, milliseconds since the recording began |
| input_length | prompt tokens: from ``usage``, else a quarter of the body's bytes |
| output_length | completion tokens: from ``usage``, else pieces of the stream; 0 without an answer |
| hash_ids | of the prompt's whole blocks; each covers all that comes before it |
| block_bytes | size of a block |
| service, model | where it went, and what it asked for |
| stream | whether a stream was asked for |
| max_tokens | asked for; 0: not said |
| ttft_ms, duration_ms | to the first byte (null without one) and the last |
| outcome | as in the access log |
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import msgspec

from tidecell.traffic.access_log import AccessLog
from tidecell.traffic.admission import TrafficAdmission
from tidecell.traffic.limits import BYTES_PER_TOKEN
from tidecell.traffic.policy import Decision, End, Facts
from tidecell.traffic.prefix import chain

SCHEMA = 1
BLOCK_BYTES = 2048  # about 512 tokens, as in Mooncake's traces


class Row(msgspec.Struct, frozen=True, gc=False):
    """One request; see the table above."""

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]
    block_bytes: int
    service: str
    model: str
    stream: bool
    max_tokens: int
    ttft_ms: float | None
    duration_ms: float
    outcome: str
    schema: int = SCHEMA


class Recorder:
    """Writes a trace; as it rotates, the newest files are kept.

    Args:
        path: The file.
        began_s: Time from which requests are counted.
    """

    def __init__(self, path: Path, began_s: float) -> None:
        self._log = AccessLog(path)
        self._began_s = began_s
        self._key = secrets.token_bytes(32)

    def record(self, service: str, facts: Facts, end: End) -> None:
        """Take note of a request that ended."""
        tokens_in = facts.body_bytes // BYTES_PER_TOKEN if end.tokens_in is None else end.tokens_in
        answered = end.frames if end.ttft_ms is not None and end.frames > 1 else 0
        self._log.write(
            Row(
                timestamp=max(0, round((facts.arrived_s - self._began_s) * 1000.0)),
                input_length=max(0, tokens_in),
                output_length=answered if end.tokens_out is None else end.tokens_out,
                hash_ids=tuple(self._keyed(block) for block in chain(facts.body, BLOCK_BYTES)),
                block_bytes=BLOCK_BYTES,
                service=service,
                model=facts.model,
                stream=facts.stream,
                max_tokens=facts.max_tokens,
                ttft_ms=None if end.ttft_ms is None else round(end.ttft_ms, 3),
                duration_ms=round(end.duration_ms, 3),
                outcome=end.outcome,
            )
        )

    def close(self) -> None:
        """Write what is buffered."""
        self._log.close()

    def _keyed(self, block: int) -> int:
        raw = hashlib.blake2b(block.to_bytes(8, "little"), digest_size=7, key=self._key).digest()
        return int.from_bytes(raw, "little")


class RecordedAdmission:
    """Admission that also records what it settles."""

    def __init__(self, inner: TrafficAdmission, recorder: Recorder) -> None:
        self._inner = inner
        self._recorder = recorder

    def admit(self, facts: Facts, now_s: float) -> Decision:
        """Return what becomes of the request."""
        return self._inner.admit(facts, now_s)

    def settle(self, facts: Facts, end: End, now_s: float) -> None:
        """Note the end of an admitted request."""
        routed = self._inner.routed(facts)
        self._recorder.record(facts.service if routed is None else routed.service, facts, end)
        self._inner.settle(facts, end, now_s)
