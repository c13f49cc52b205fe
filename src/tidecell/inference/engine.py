"""The loop between requests and forward passes, in a thread of its own.

It steps while there is work and sleeps on a condition otherwise. Requests come from any thread; what
they produce goes out once per step through ``deliver``, so that an event loop is woken once for a whole
batch. Cancelling takes effect before the next step, and gives back KV blocks there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import msgspec

from tidecell.inference.batcher import Batcher, Chunk
from tidecell.inference.meters import Meters
from tidecell.inference.outputs import Deliver, Finish, Load, Output, Sink, deliver_directly
from tidecell.inference.params import Choice, SamplingParams
from tidecell.inference.runner import Runner
from tidecell.inference.sampler import Row, sample
from tidecell.inference.text import TextCodec, TextStream


class _Live:
    """A request as the engine holds it."""

    __slots__ = ("last_at_s", "output", "params", "prompt", "sink", "stops", "stream", "submitted_at_s")

    def __init__(
        self, prompt: Sequence[int], params: SamplingParams, stops: frozenset[int], sink: Sink, now_s: float
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.stops = stops
        self.sink = sink
        self.output: list[int] = []
        self.stream = TextStream(params.stop)
        self.submitted_at_s = now_s
        self.last_at_s = 0.0


class Engine:
    """Generates for many requests at once.

    Args:
        runner: Forward passes; from ``start`` on only this engine's thread may use it.
        codec: The model's tokenizer.
        batcher: Empty, over as many blocks as the runner's pool has.
        eos_ids: Tokens that end an answer.
        meters: Where to count.
        deliver: Takes each step's outputs, in the engine's thread.
    """

    def __init__(
        self,
        runner: Runner,
        codec: TextCodec,
        batcher: Batcher,
        eos_ids: frozenset[int],
        meters: Meters | None = None,
        deliver: Deliver = deliver_directly,
    ) -> None:
        self.meters = meters or Meters()
        self._runner = runner
        self._codec = codec
        self._batcher = batcher
        self._eos_ids = eos_ids
        self._deliver = deliver
        self._live: dict[int, _Live] = {}
        self._inbox: list[tuple[int, _Live]] = []
        self._cancelled: list[int] = []
        self._next_id = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._load = Load(0, 0, batcher.cache.stats(), 0)
        self._thread = threading.Thread(target=self._run, name="tidecell-engine", daemon=True)

    def start(self) -> None:
        """Start the loop."""
        self._thread.start()

    def stop(self) -> None:
        """End the loop after the step that is running; requests still here end as cancelled."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, prompt: Sequence[int], params: SamplingParams, sink: Sink) -> int:
        """Queue a request; ``sink`` is called with its outputs, the last of which has ``finish``.

        Returns:
            The request's id, for ``cancel``.

        Raises:
            ValueError: Prompt and ``max_tokens`` exceed what the KV pool holds, or are empty.
            RuntimeError: The engine has stopped.
        """
        self._batcher.check(len(prompt), params.max_tokens)
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_ids)
        live = _Live(prompt, params, stops, sink, time.monotonic())
        with self._changed:
            if self._stopping:
                raise RuntimeError("the engine has stopped")
            self._next_id += 1
            self._inbox.append((self._next_id, live))
            self._changed.notify()
            return self._next_id

    def cancel(self, request_id: int) -> None:
        """Drop a request before the next step; one that has ended already is ignored."""
        with self._changed:
            self._cancelled.append(request_id)
            self._changed.notify()

    def load(self) -> Load:
        """Return how busy it is: as of the last step, plus what came since."""
        with self._changed:
            load, arrived = self._load, len(self._inbox)
        return msgspec.structs.replace(load, waiting=load.waiting + arrived)

    def _run(self) -> None:
        while self._take_in():
            try:
                outputs = self._step()
                self._publish()  # first: whoever gets an answer sees a load without it
                self._deliver(outputs)
            except Exception as error:
                outputs = self._fail(error)
                self._publish()
                self._deliver(outputs)
        self._deliver([(live.sink, Output("", finish=Finish.CANCELLED)) for live in self._live.values()])

    def _take_in(self) -> bool:
        """Wait for work and take in what came; False when the loop is to end."""
        with self._changed:
            while not (self._live or self._inbox or self._cancelled or self._stopping):
                self._changed.wait()
            inbox, self._inbox = self._inbox, []
            cancelled, self._cancelled = self._cancelled, []
            stopping = self._stopping
        for request_id, live in inbox:
            self._live[request_id] = live
            self._batcher.add(request_id, live.prompt, live.params.max_tokens)
        for request_id in cancelled:
            self._drop(request_id)
        return not stopping

    def _step(self) -> list[tuple[Sink, Output]]:
        """Run one forward pass and return what it produced."""
        chunks = self._batcher.plan()
        if not chunks:
            return []
        started_at_s = time.monotonic()
        logits_RV, indices = self._runner.forward(chunks)
        # A model may have more outputs than its tokenizer has tokens; the rest is padding.
        logits_RV = logits_RV[:, : self._codec.vocab_size]
        sampled = [chunks[i].request_id for i in indices]
        rows = [self._row(self._live[request_id]) for request_id in sampled]
        choices = dict(zip(sampled, sample(logits_RV, rows), strict=True)) if rows else {}
        self._batcher.commit(chunks, {request_id: choice.token for request_id, choice in choices.items()})
        now_s = time.monotonic()
        self._count(chunks, now_s - started_at_s)
        return [self._advance(request_id, choice, now_s) for request_id, choice in choices.items()]

    def _row(self, live: _Live) -> Row:
        return Row(live.params, live.prompt, live.output)

    def _advance(self, request_id: int, choice: Choice, now_s: float) -> tuple[Sink, Output]:
        """Add a chosen token to its request's answer."""
        live = self._live[request_id]
        live.output.append(choice.token)
        self._time(live, now_s)
        finish = None
        text = ""
        if choice.token in live.stops:
            finish = Finish.STOP
        else:
            text = live.stream.push(self._codec.token_bytes(choice.token))
            if live.stream.stopped:
                finish = Finish.STOP
            elif len(live.output) >= live.params.max_tokens:
                finish = Finish.LENGTH
        if finish is not None:
            text += live.stream.finish()
            # The last characters may only now turn out to be a stop string's.
            finish = Finish.STOP if live.stream.stopped else finish
            self._drop(request_id)
            self.meters.finished[finish] += 1
        choices = () if choice.token in live.stops else (choice,)
        return live.sink, Output(text, choices, len(live.output), finish)

    def _drop(self, request_id: int) -> None:
        if self._live.pop(request_id, None) is not None:
            self._batcher.remove(request_id)

    def _fail(self, error: Exception) -> list[tuple[Sink, Output]]:
        """Drop every request and return the error for each; the engine goes on with those that come."""
        lost = list(self._live.items())
        for request_id, _live in lost:
            self._drop(request_id)
        text = f"{type(error).__name__}: {error}"
        self.meters.finished[Finish.ERROR] += len(lost)
        return [(live.sink, Output("", finish=Finish.ERROR, error=text)) for _, live in lost]

    def _publish(self) -> None:
        batcher = self._batcher
        load = Load(batcher.num_running, batcher.num_waiting, batcher.cache.stats(), batcher.num_preemptions)
        with self._changed:
            self._load = load

    def _count(self, chunks: Sequence[Chunk], took_s: float) -> None:
        meters = self.meters
        meters.steps += 1
        meters.step_seconds += took_s
        meters.computed_tokens += sum(len(chunk.tokens) for chunk in chunks)

    def _time(self, live: _Live, now_s: float) -> None:
        meters = self.meters
        if live.last_at_s:
            meters.between_tokens.add(now_s - live.last_at_s)
        else:
            meters.first_token.add(now_s - live.submitted_at_s)
            meters.prompt_tokens += len(live.prompt)
        live.last_at_s = now_s
        meters.generated_tokens += 1
