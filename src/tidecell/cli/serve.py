"""`tide serve`, `tide generate` and `tide chat`: models in use."""

from __future__ import annotations

import contextlib
import json
import queue
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tidecell.cli.gpus import AUTO, GPUS_HELP, accelerators
from tidecell.cli.served import Served, ServedError
from tidecell.cli.show import err, out, print_json
from tidecell.client.client import Client
from tidecell.client.units import parse_cpu, parse_duration, parse_priority, parse_replicas, parse_size
from tidecell.client.views import JobStatus
from tidecell.inference.jobs import model_directory, serve_job
from tidecell.structs.errors import CellUnreachable, NotFoundError, TidecellError
from tidecell.structs.job import JobSpec, Scaling
from tidecell.structs.resources import Resources

if TYPE_CHECKING:
    from tidecell.inference.outputs import Output

_LOOK_EVERY_S = 1.0  # how often the line that shows progress changes
_BROKEN_ATTEMPTS = 3  # starts after which one that was never ready is taken for broken


@click.command()
@click.argument("model")
@click.option("-n", "--name", default="", help="Name of the service (default: the model's).")
@click.option("--model-name", default="", help="What requests ask for (default: the service's name).")
@click.option("--replicas", default="1", show_default=True, help="N, or MIN..MAX.")
@click.option("--target", default=4.0, show_default=True, help="Requests per replica to scale for.")
@click.option("--up-delay", default="15s", show_default=True, help="High load lasts so long before more.")
@click.option("--down-delay", default="5m", show_default=True, help="Low load lasts so long before fewer.")
@click.option("--cpu", default="0.5", show_default=True, help="Cores per replica.")
@click.option("--memory", default="", help="Memory per replica, for example 1GB.")
@click.option("--gpus", default=AUTO, show_default=True, help=GPUS_HELP)
@click.option("--priority", default="production", show_default=True, help="A band, or BAND+N.")
@click.option("--max-batch", default=32, show_default=True, help="Requests computed together at most.")
@click.option("--max-context", default=0, help="Tokens of prompt and answer (default: the model's).")
@click.option("--threads", default=1, show_default=True, help="Threads of one forward pass.")
@click.option("--grace-period", default="30s", show_default=True, help="To finish requests before it leaves.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it is ready.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def serve(model: str, detach: bool, as_json: bool, **options: Any) -> None:
    """Serve MODEL, a directory or a run's name, behind an OpenAI API.

    Returns when it is ready; the service goes on. Stop it with tide stop NAME.
    """
    spec = _spec(model_directory(model), model, options)
    with Client.from_home() as client:
        job = client.submit(spec)
        if not detach:
            job = _wait_ready(client, job)
        url, token = client.router_url, client.token
    if as_json:
        print_json(job)
    elif detach:
        out.print(f"{job.name}   {job.state.value}   {url}/v1   model {spec.models[0]}")
    else:
        _print_usage(job, url, token, spec.models[0])


def _spec(directory: Path, reference: str, o: dict[str, Any]) -> JobSpec:
    gpu_type, gpus = accelerators(o["gpus"])
    memory_bytes = parse_size(o["memory"]) if o["memory"] else 0
    name = o["name"] or _service_name(directory, reference)
    return serve_job(
        name,
        directory,
        model_id=o["model_name"],
        replicas=parse_replicas(o["replicas"]),
        scaling=Scaling(
            target=o["target"],
            up_delay_s=parse_duration(o["up_delay"]),
            down_delay_s=parse_duration(o["down_delay"]),
        ),
        resources=Resources(parse_cpu(o["cpu"]), memory_bytes, gpus),
        accelerator_type=gpu_type,
        priority=parse_priority(o["priority"]),
        grace_period_s=parse_duration(o["grace_period"]),
        threads=o["threads"],
        max_batch=o["max_batch"],
        max_context=o["max_context"],
    )


def _service_name(directory: Path, reference: str) -> str:
    """Return a legal name from a run's name, or from a directory's (``model`` says nothing: its parent's)."""
    plain = reference if "/" not in reference and not Path(reference).is_dir() else directory.name
    if plain == "model":
        plain = directory.parent.name
    clean = "".join(c if c.isascii() and c.isalnum() else "-" for c in plain.lower()).strip("-")
    return clean[:40].strip("-") or "model"


def _wait_ready(client: Client, job: JobStatus) -> JobStatus:
    """Show a line until the service is ready.

    Raises:
        TidecellError: It ended before it was.
    """
    with err.status(f"{job.name}: starting") as line:
        try:
            while not job.done and job.ready < max(1, job.replicas.min):
                waits = f", waits: {job.message}" if job.message else ""
                line.update(f"{job.name}: {job.state.value}, {job.ready} of {job.replicas.min} ready{waits}")
                job = client.wait(job.uid, until="ready", timeout_s=_LOOK_EVERY_S)
                _give_up_if_broken(client, job)
        except KeyboardInterrupt:
            err.print(f"{job.name} goes on starting; stop it: tide stop {job.name}")
            raise
    if job.done:
        text = f"service '{job.name}' {job.state.value}" + (f": {job.message}" if job.message else "")
        raise TidecellError(text, f"its output: tide logs {job.name}")
    return job


def _give_up_if_broken(client: Client, job: JobStatus) -> None:
    """Raise when replicas end again and again before one was ready; the cell goes on trying."""
    if job.ready or not any(task.attempt >= _BROKEN_ATTEMPTS for task in job.tasks):
        return
    text = "".join(line.text for line in client.logs(job.uid, tail=40, stream="err"))
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    why = f": {errors[-1].removeprefix('error: ')}" if errors else ""
    raise TidecellError(
        f"replicas of '{job.name}' end before they are ready{why}",
        f"their output: tide logs {job.name}; the cell goes on trying until you say: tide stop {job.name}",
    )


def _print_usage(job: JobStatus, url: str, token: str, model: str) -> None:
    """Say where it is and how to ask it. The token is shown by command, not by value."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    out.print(f"{job.name} is ready: {job.ready} of {job.replicas} replicas")
    out.print(f"\n  endpoint  {url}/v1\n  model     {model}\n  token     tide token\n")
    auth = ' -H "Authorization: Bearer $(tide token)"' if token else ""
    click.echo(f"curl {url}/v1/chat/completions{auth} -H 'Content-Type: application/json' -d '{body}'\n")
    click.echo(
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{url}/v1", api_key="...")  # the token\n'
        'messages = [{"role": "user", "content": "Hello"}]\n'
        f'client.chat.completions.create(model="{model}", messages=messages)\n'
    )
    out.print(f"talk to it: tide chat {model}    stop it: tide stop {job.name}")


@click.command()
@click.argument("model")
@click.argument("prompt")
@click.option("--max-tokens", default=128, show_default=True, help="Tokens to generate at most.")
@click.option("--temperature", default=0.8, show_default=True, help="0: always the likeliest token.")
@click.option("--top-p", default=0.95, show_default=True, help="Keep the likeliest, up to this probability.")
@click.option("--seed", type=int, help="Makes the text repeatable.")
@click.option("--stop", multiple=True, help="Text that ends it; may be repeated.")
@click.option("--chat", "as_chat", is_flag=True, help="Ask PROMPT as a user, instead of continuing it.")
@click.option("--local", is_flag=True, help="Load the model here, even if it is served.")
def generate(model: str, prompt: str, as_chat: bool, local: bool, **options: Any) -> None:
    """Generate text once. MODEL is served by the cell, or a run's name or a directory, loaded here.

    PROMPT may be - to read it from standard input.
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    params = {key: value for key, value in options.items() if value is not None and value != ()}
    served = None if local else _served_with(model)
    if served is None:
        pieces = _generate_here(model_directory(model), text, as_chat, params)
    elif as_chat:
        pieces = served.chat(model, [{"role": "user", "content": text}], params)
    else:
        pieces = served.complete(model, text, params)
    with contextlib.closing(served) if served else contextlib.nullcontext():
        _print_pieces(pieces)


def _served_with(model: str) -> Served | None:
    """Return the router if it serves the model; None without one, or without a cell."""
    try:
        served = Served.from_home()
        if model in served.models():
            return served
        served.close()
    except CellUnreachable:
        pass
    return None


def _generate_here(directory: Path, text: str, as_chat: bool, params: dict[str, Any]) -> Iterator[str]:
    """Yield the text that a model, loaded in this process, generates."""
    try:
        from tidecell.inference.loading import Options, load_engine
    except ImportError as error:
        raise TidecellError(
            f"generating needs a package that is not installed: {error.name}",
            "install it with: pip install 'tidecell[ai]'",
        ) from error
    from tidecell.inference.outputs import Finish
    from tidecell.inference.params import local_params

    loaded = load_engine(directory, Options(max_batch=1))
    prompt = (
        loaded.codec.encode_chat([{"role": "user", "content": text}])
        if as_chat
        else loaded.codec.encode(text)
    )
    room = loaded.max_context - len(prompt)
    if not prompt or room < 1:
        raise TidecellError(f"the prompt has {len(prompt)} tokens; 1 to {loaded.max_context - 1} are allowed")
    outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
    loaded.engine.submit(prompt, local_params(params, room), outputs.put)
    try:
        while True:
            output = outputs.get()
            yield output.text
            if output.finish is Finish.ERROR:
                raise TidecellError(f"the engine failed: {output.error}")
            if output.finish is not None:
                return
    finally:
        loaded.engine.stop()


def _print_pieces(pieces: Iterator[str]) -> str:
    """Write text to stdout as it comes, and return it."""
    shown = []
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
        shown.append(piece)
    sys.stdout.write("\n")
    return "".join(shown)


@click.command()
@click.argument("model", required=False)
@click.option("--system", default="", help="Instruction that every conversation begins with.")
@click.option("--max-tokens", type=int, help="Tokens of an answer at most.")
@click.option("--temperature", default=0.7, show_default=True, help="0: always the likeliest token.")
@click.option("--seed", type=int, help="Makes answers repeatable.")
def chat(model: str | None, system: str, **options: Any) -> None:
    """Talk to a served MODEL (default: the only one).

    /reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C cancels the answer.
    """
    with Served.from_home() as served:
        conversation = _Conversation(served, _choose(served.models(), model), system, options)
        err.print(f"talking to {conversation.model}   /reset  /exit   Ctrl-C cancels an answer", style="dim")
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then edits lines and remembers them)
        while (text := _ask()) is not None:
            if text == "/reset":
                conversation.reset()
                err.print("forgotten", style="dim")
            elif text.startswith("/"):
                err.print(f"there is no {text}; /reset and /exit are commands", style="yellow")
            elif text:
                conversation.say(text)


def _choose(models: list[str], wanted: str | None) -> str:
    have = ", ".join(models) or "none"
    if wanted is None and len(models) == 1:
        return models[0]
    if wanted in models:
        return str(wanted)
    text = f"model '{wanted}' is not served" if wanted else f"{len(models)} models are served"
    raise NotFoundError(f"{text}; served are: {have}", "serve one: tide serve MODEL, or name one of these")


def _ask() -> str | None:
    """Return what the user typed; None to leave."""
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            err.print("\n(/exit leaves)", style="dim")
            continue
        return None if text in ("/exit", "/quit") else text


class _Conversation:
    """Messages so far, and who answers them."""

    def __init__(self, served: Served, model: str, system: str, options: dict[str, Any]) -> None:
        self.model = model
        self._served = served
        self._system = [{"role": "system", "content": system}] if system else []
        self._params = {key: value for key, value in options.items() if value is not None}
        self._turns: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget everything but the instruction."""
        self._turns = []

    def say(self, text: str) -> None:
        """Ask, and print the answer; one that is cancelled is kept as far as it came."""
        self._turns.append({"role": "user", "content": text})
        while True:
            shown: list[str] = []
            try:
                self._stream(shown)
            except ServedError as error:
                if error.code == "context_length_exceeded" and len(self._turns) > 2:
                    err.print("(the oldest messages no longer fit and are left out)", style="dim")
                    del self._turns[:2]
                    continue
                err.print(error.render(), style="red")
                self._turns.pop()
                return
            except TidecellError as error:
                err.print(error.render(), style="red")
                self._turns.pop()
                return
            self._turns.append({"role": "assistant", "content": "".join(shown)})
            return

    def _stream(self, shown: list[str]) -> None:
        pieces = self._served.chat(self.model, [*self._system, *self._turns], self._params)
        with contextlib.closing(pieces):
            try:
                for piece in pieces:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
                    shown.append(piece)
            except KeyboardInterrupt:
                err.print(" (cancelled)", style="dim", end="")
        sys.stdout.write("\n")
