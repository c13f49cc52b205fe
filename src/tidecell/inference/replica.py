"""One replica of a model: a process that serves OpenAI's API on a port of this machine.

    python -m tidecell.inference.replica --model runs/toy/model --name toy --port 8100

The port is bound at once and ``/health`` answers 503 until the model is loaded and has computed a first
step. SIGTERM or a notice from the agent (docs/task-contract.md) begin the same drain: no new connections,
what is in flight is finished within the grace period, exit status 0.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvicorn
import uvloop

from tidecell.inference.app import App
from tidecell.inference.jobs import model_directory
from tidecell.inference.outputs import Output, Sink
from tidecell.structs.errors import NotFoundError, TidecellError
from tidecell.task_link import AgentLink

_REPORT_EVERY_S = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit status."""
    args = _parse(argv)
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    try:
        directory = model_directory(args.model)
    except NotFoundError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    name = args.name or directory.name
    try:
        listener = _listen(args.host, args.port)
    except OSError as error:
        print(f"error: cannot listen on {args.host}:{args.port}: {error.strerror}", file=sys.stderr)
        return 1
    host, port = listener.getsockname()[:2]
    print(f"replica of {name}: loading {directory}, listening on {host}:{port}", flush=True)
    replica = Replica(App(name, _fingerprint(directory)), directory, args)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(replica.serve(listener))


class Replica:
    """The process around an ``App``: loads the model, drains, reports.

    Args:
        app: What answers requests.
        directory: The model's.
        args: The command line.
    """

    def __init__(self, app: App, directory: Path, args: argparse.Namespace) -> None:
        self._app = app
        self._directory = directory
        self._args = args
        self._started_at_s = time.monotonic()
        self._exit_code = 0
        self._drains = False
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",  # importing it costs a tenth of a second
            log_level="warning",
            access_log=False,
            timeout_keep_alive=120,
            server_header=False,
        )
        self._server = uvicorn.Server(config)

    async def serve(self, listener: socket.socket) -> int:
        """Serve on a bound socket until drained; return the exit status."""
        self._loop = asyncio.get_running_loop()
        link = await asyncio.to_thread(_agent_link)
        threading.Thread(target=self._load, name="tidecell-load", daemon=True).start()
        if link is not None:
            threading.Thread(target=self._watch, args=(link,), name="tidecell-notice", daemon=True).start()
        chores = [asyncio.create_task(self._take_signals())]
        if link is not None:
            chores.append(asyncio.create_task(self._report(link)))
        await self._server.serve(sockets=[listener])
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        if self._app.loaded is not None:
            await asyncio.to_thread(self._app.loaded.engine.stop)
        return self._exit_code

    def drain(self, grace_s: float, why: str) -> None:
        """Finish what is in flight, then end; what is not finished after ``grace_s`` seconds is dropped."""
        if self._drains:
            return
        self._drains = True
        print(f"draining ({why}): {self._app.ongoing()} requests in flight", flush=True)
        self._server.should_exit = True
        self._loop.call_later(grace_s, self._force)

    def _force(self) -> None:
        self._server.force_exit = True

    async def _take_signals(self) -> None:
        """Replace uvicorn's handlers, which would end the process by the signal and not with status 0."""
        while not self._server.started:
            await asyncio.sleep(0.005)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.drain, self._args.grace, number.name)

    def _load(self) -> None:
        """Load the model, in a thread: the import of torch alone takes seconds."""
        try:
            from tidecell.inference.loading import Options, load_engine

            args = self._args
            options = Options(
                max_batch=args.max_batch,
                max_context=args.max_context,
                threads=args.threads,
                device=args.device,
                pool_bytes=args.kv_memory << 20,
            )
            self._app.loaded = load_engine(self._directory, options, self._deliver)
        except Exception as error:
            text = error.render() if isinstance(error, TidecellError) else f"error: {error!r}"
            print(text, file=sys.stderr, flush=True)
            self._exit_code = 1
            self._loop.call_soon_threadsafe(self.drain, 0.0, "the model cannot be loaded")
            return
        took_s = time.monotonic() - self._started_at_s
        print(f"ready after {took_s:.2f} s", flush=True)

    def _deliver(self, outputs: Sequence[tuple[Sink, Output]]) -> None:
        """Hand a step's outputs to the event loop; called in the engine's thread."""
        if outputs:
            try:
                self._loop.call_soon_threadsafe(_hand_out, outputs)
            except RuntimeError:  # the loop has ended, and with it whoever listened
                pass

    def _watch(self, link: AgentLink) -> None:
        """Wait for the notice to leave, in a thread."""
        while not link.wait(lambda: link.notice is not None, timeout_s=3600.0):
            pass
        notice = link.notice
        if notice is not None:
            self._loop.call_soon_threadsafe(self.drain, notice.remaining_s, notice.cause)

    async def _report(self, link: AgentLink) -> None:
        """Tell the agent once a second how busy this replica is, while it is."""
        last_tokens, last_at_s, was_busy = 0, time.monotonic(), False
        while True:
            await asyncio.sleep(_REPORT_EVERY_S)
            if self._app.loaded is None:
                continue
            tokens, now_s = self._app.loaded.engine.meters.generated_tokens, time.monotonic()
            ongoing = self._app.ongoing()
            busy = ongoing > 0 or tokens > last_tokens
            if busy or was_busy:  # the last report of a burst says that it is over
                rate = (tokens - last_tokens) / (now_s - last_at_s)
                link.report({"kind": "serve", "ongoing": ongoing, "tokens_per_s": round(rate, 1)})
            last_tokens, last_at_s, was_busy = tokens, now_s, busy


def _hand_out(outputs: Sequence[tuple[Sink, Output]]) -> None:
    for sink, output in outputs:
        sink(output)


def _agent_link() -> AgentLink | None:
    """Return the line to the agent, None outside a cell."""
    if not os.environ.get("TIDECELL_SOCKET"):
        return None
    try:
        return AgentLink.from_environment()
    except OSError as error:
        print(f"warning: the agent does not answer ({error}); SIGTERM alone stops this replica", flush=True)
        return None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _fingerprint(directory: Path) -> str:
    """Return the beginning of the weights' digest, which the model's card has."""
    try:
        card = msgspec.json.decode((directory / "card.json").read_bytes())
        return f"tidecell-{str(card['weights_sha256'])[:12]}"
    except (OSError, msgspec.DecodeError, KeyError, TypeError):
        return "tidecell"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("tidecell.inference.replica", description="Serve one model.")
    add = parser.add_argument
    add("--model", required=True, help="model directory, or a run's name")
    add("--name", default="", help="model name that requests ask for (default: the directory's)")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=int(os.environ.get("PORT", "8000")), help="port (default: $PORT, 8000)")
    add("--max-batch", type=int, default=32, help="requests computed together at most")
    add(
        "--max-context",
        type=int,
        default=0,
        help="tokens of prompt and answer (default: the model's)",
    )
    add("--threads", type=int, default=1, help="threads of one forward pass")
    add("--device", choices=("", "cpu", "cuda"), default="", help="default: cuda where there is one")
    add("--kv-memory", type=int, default=128, metavar="MIB", help="upper bound of the KV pool")
    add("--grace", type=float, default=30.0, metavar="S", help="time to finish what is in flight on SIGTERM")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
