"""`tide demo`: from raw text to a served model, and the tide, on this machine.

It types commands that anyone could type, and prints each. What is finished is kept in a home of its own
and used again by the next demo; Ctrl-C takes the cell down.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.table import Table

from tidecell.cli import lifecycle
from tidecell.cli.demo_tide import Tide, TideResult
from tidecell.cli.show import err, out
from tidecell.client.client import Client
from tidecell.client.home import Home
from tidecell.structs.errors import TidecellError

BASE, ASSISTANT, SERVICE, DATASET = "base", "assistant", "chat", "stdlib"
# Found by measurement on two cores (docs/benchmarks/demo.md): see there before changing.
TRAIN_STEPS = 480
CHECKPOINT_EVERY = 40
TUNE_STEPS = 40
QUESTION = "Write this Python function.\n\ndef is_empty(self)\n\nReturn True if the queue is empty."


@dataclass
class Demo:
    """The demo's stages and what they found."""

    home: Home
    began_s: float = field(default_factory=time.time)
    rows: list[tuple[str, str]] = field(default_factory=list)

    def tide(self, *args: str, quiet: bool = False) -> str:
        """Print and run one `tide` command, as a user would; return what it wrote when ``quiet``."""
        words = " ".join(f"'{a}'" if " " in a else a for a in args)
        err.print(f"[bold cyan]$[/] [bold]tide {words}[/]")
        command = [sys.executable, "-m", "tidecell.cli.main", *args]
        env = {**os.environ, "TIDECELL_HOME": str(self.home.path)}
        stdout = subprocess.PIPE if quiet else None
        done = subprocess.run(command, env=env, stdout=stdout, text=True, check=False)
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode != 0:
            raise TidecellError(
                f"`tide {words}` ended with {done.returncode}", f"the cell's logs: {self.home / 'log'}"
            )
        return done.stdout or ""

    def stage(self, number: int, title: str) -> None:
        """Announce a stage."""
        spent_s = time.time() - self.began_s
        err.print(f"\n[bold]{number}  {title}[/]   [dim]{spent_s:.0f} s[/]")

    # ------------------------------------------------------------------------------- stages

    def start_cell(self) -> None:
        """1. Control plane, agent and router on loopback."""
        self.stage(1, "A cell on this machine")
        self.tide("up")

    def prepare_data(self) -> None:
        """2. Python's own standard library: clean, deduplicate, tokenise, pack."""
        self.stage(2, "Data: the source of Python's own library, from raw text to token shards")
        self.tide("data", "prepare", "--out", DATASET)

    def pretrain(self) -> None:
        """3. A small decoder, elastic between one and two workers."""
        self.stage(3, "Pre-training: a small language model, elastic between 1 and 2 workers")
        args = ("train", DATASET, "--name", BASE, *self._train_flags())
        self._once(BASE, args)
        card = self._card(BASE)
        text = f"{card['steps']} steps, {card['bits_per_char']:.2f} bits per character on held-out files"
        self.rows.append(("pre-training", text))

    @staticmethod
    def _train_flags() -> tuple[str, ...]:
        return (
            *("--steps", str(TRAIN_STEPS), "--checkpoint-every", str(CHECKPOINT_EVERY)),
            *("--validate-every", "200", "--workers", "1..2", "--cpu", _share(0.375), "--gpus", "0"),
        )

    def tune(self) -> None:
        """4. LoRA on pairs of docstring and function, made from the same files."""
        self.stage(4, "Fine-tuning: LoRA on docstring -> function pairs made from the same files")
        args = ("tune", BASE, DATASET, "--name", ASSISTANT, "--steps", str(TUNE_STEPS))
        self._once(ASSISTANT, (*args, "--workers", "1..2", "--cpu", _share(0.375), "--gpus", "0"))
        self.rows.append(("fine-tuning", f"{TUNE_STEPS} steps of LoRA; the adapter is merged into the model"))

    def serve(self) -> None:
        """5. Behind the router, with an OpenAI-compatible API."""
        self.stage(5, "Serving: production, behind the router, with an OpenAI-compatible API")
        with Client.from_home(self.home) as client:
            for job in client.jobs():  # of a demo that was interrupted
                client.stop(job.uid, now=True)
                client.wait(job.uid)
        self.tide(
            *("serve", ASSISTANT, "--name", SERVICE, "--replicas", "1..2", "--target", "4"),
            *("--cpu", _share(0.25), "--gpus", "0", "--up-delay", "1s", "--down-delay", "6s"),
        )
        self._ask()

    def _ask(self) -> None:
        """Ask the model something with the `openai` client, as an application would."""
        try:
            from openai import OpenAI
        except ImportError as error:
            raise TidecellError(
                "the demo needs the `openai` client", "install it: pip install 'tidecell[demo]'"
            ) from error
        with Client.from_home(self.home) as client:
            url = f"{client.router_url}/v1"
        err.print(
            f"[bold cyan]>>>[/] OpenAI(base_url='{url}').chat.completions.create(model='{SERVICE}', ...)"
        )
        err.print(f"[dim]{QUESTION}[/]\n")
        began_s = time.monotonic()
        with OpenAI(base_url=url, api_key=self.home.token()) as openai:
            answer = openai.chat.completions.create(
                model=SERVICE,
                messages=[{"role": "user", "content": QUESTION}],
                max_tokens=64,
                temperature=0.0,
            )
        text = answer.choices[0].message.content or ""
        out.print(text, markup=False)
        count = answer.usage.completion_tokens if answer.usage else 0
        self.rows.append(("serving", f"answered {count} tokens in {time.monotonic() - began_s:.2f} s"))

    def show_tide(self) -> TideResult:
        """6. A burst of requests takes capacity from a training, and gives it back."""
        self.stage(6, "The tide: a burst of requests shrinks a training; afterwards it grows back")
        name = self._fresh_name()
        self.tide("train", DATASET, "--name", name, "-d", *self._train_flags())
        with Client.from_home(self.home) as client:
            tide = Tide(client, self.home, name, SERVICE, QUESTION)
            result = tide.run(CHECKPOINT_EVERY, TRAIN_STEPS)
        self.tide("stop", name)
        result.compare(self.home / "runs" / name, self.home / "runs" / BASE)
        shutil.rmtree(self.home / "runs" / name, ignore_errors=True)
        return result

    def _fresh_name(self) -> str:
        taken = {p.name for p in (self.home / "runs").iterdir()}
        return next(f"tide-{n}" for n in range(1, 10_000) if f"tide-{n}" not in taken)

    def summarise(self, result: TideResult) -> bool:
        """7. The table, the picture, and where to look next."""
        self.stage(7, "What happened")
        picture = self.home / "tide.png"
        since = f"{time.time() - result.began_s + 1:.0f}s"
        marks = [a for at_s, text in result.marks for a in ("--mark", f"{at_s:.1f}={text}")]
        title = "One machine: training gives way to serving, and comes back"
        self.tide("chart", "--since", since, "-o", str(picture), "--title", title, *marks)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for key, value in [*self.rows, *result.rows()]:
            table.add_row(key, value)
        spent_s = time.time() - self.began_s
        table.add_row("total", f"{spent_s:.0f} s; the tide chart: {picture}")
        out.print(table)
        zeros = f"{result.failed} failed requests, {result.lost_steps} lost steps, "
        zeros += f"{result.differing} differing digests"
        out.print(f"\n[bold {'green' if result.good else 'red'}]{zeros}[/]")
        return result.good

    # ------------------------------------------------------------------------------- helpers

    def _once(self, run: str, args: tuple[str, ...]) -> None:
        """Run a training unless this very one was finished by an earlier demo."""
        key = self._key(args)
        stamp = self.home / "runs" / run / "demo.json"
        if stamp.is_file() and json.loads(stamp.read_text()) == key:
            err.print(f"done by an earlier demo and kept: {stamp.parent}")
            return
        if stamp.parent.is_dir() and not self._same_contract(run, key):
            shutil.rmtree(stamp.parent)
        self._begin(run, key)
        self.tide(*args)
        stamp.write_text(json.dumps(key))

    def _key(self, args: tuple[str, ...]) -> dict[str, str]:
        """What a finished training rests on: its command, its data, its base."""
        parts = {
            "command": " ".join(args),
            "data": str((self.home / "data" / DATASET / "latest").resolve().name),
        }
        if args[0] == "tune":
            weights = self.home / "runs" / BASE / "model" / "model.safetensors"
            parts["base"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        return parts

    def _same_contract(self, run: str, key: dict[str, str]) -> bool:
        """Whether an interrupted training of this run was this very one: then it goes on."""
        begun = self.home / "runs" / run / "demo-begun.json"
        return begun.is_file() and json.loads(begun.read_text()) == key

    def _begin(self, run: str, key: dict[str, str]) -> None:
        folder = self.home / "runs" / run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "demo-begun.json").write_text(json.dumps(key))

    def _card(self, run: str) -> dict[str, float]:
        path: Path = self.home / "runs" / run / "model" / "card.json"
        return dict(json.loads(path.read_text()))


def _share(part: float) -> str:
    """Return a part of this machine's cores as a flag: two trainers and two replicas do not fit at once."""
    from tidecell.engines.discover import discover_machine

    return f"{discover_machine().capacity.cpu_millis * part / 1000:.3f}"


@click.command()
@click.option("--keep/--no-keep", default=None, help="Leave the cell up (default: when a person watches).")
@click.option("--fresh", is_flag=True, help="Forget what earlier demos finished.")
def demo(keep: bool | None, fresh: bool) -> None:
    """From raw text to a served model, and the tide: about five minutes on two cores.

    It uses a home of its own, the directory `demo` in $TIDECELL_HOME or ~/.tidecell.
    """
    home = Home(Home().path / "demo")
    if fresh:
        lifecycle.bring_down(home, 5.0)
        shutil.rmtree(home.path, ignore_errors=True)
    keep = sys.stdout.isatty() if keep is None else keep
    run = Demo(home)
    good = False
    try:
        run.start_cell()
        run.prepare_data()
        run.pretrain()
        run.tune()
        run.serve()
        good = run.summarise(run.show_tide())
    except KeyboardInterrupt:
        err.print(
            "\ninterrupted; taking the cell down (the next demo goes on from what is done)", style="yellow"
        )
        keep = False
        raise
    except TidecellError:
        keep = False
        raise
    finally:
        if not keep:
            lifecycle.bring_down(home, 5.0)
    _look_next(home, keep)
    if not good:
        raise TidecellError(
            "the tide did not come out as it must: see the table above",
            f"please report it with the logs in {home / 'log'}",
        )


def _look_next(home: Home, keep: bool) -> None:
    prefix = f"tide --home {home.path}"
    out.print("\nwhere to look next")
    if not keep:
        out.print(f"  {prefix} up        the cell is down; this brings it and the model back")
    out.print(f"  {prefix} chat      talk to the model")
    out.print(f"  {prefix} console   watch the cell in a browser")
    out.print(f"  {prefix} events    every decision, from the journal")
    out.print(f"  {prefix} down      stop it")
