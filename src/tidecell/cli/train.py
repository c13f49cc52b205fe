"""`tide train` and `tide tune`: train a model, in the cell or here.

The same command goes on with a run that was stopped: a run is its directory, ``runs/NAME`` in the
cell's home, and its settings.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from tidecell.cli.gpus import AUTO, GPUS_HELP, accelerators
from tidecell.cli.show import err, out, print_json
from tidecell.client.client import Client
from tidecell.client.home import Home
from tidecell.client.units import parse_cpu, parse_priority, parse_replicas
from tidecell.inference.jobs import model_directory
from tidecell.structs.errors import TidecellError
from tidecell.structs.job import JobSpec, TaskState
from tidecell.train.config import SHAPES, Lora, Schedule, Shape, TrainConfig
from tidecell.train.jobs import store_config, train_job

F = TypeVar("F", bound=Callable[..., Any])

_SHARED = (
    click.option("-n", "--name", default="", help="Name of the run (default: the dataset's)."),
    click.option("--steps", type=int, help="Optimiser steps."),
    click.option("--seq-len", type=int, help="Tokens per row."),
    click.option("--micro-batch", type=int, help="Rows per virtual rank and step."),
    click.option("--vranks", type=int, help="Virtual ranks: micro-batches per step, most workers."),
    click.option("--lr", type=float, help="Highest learning rate."),
    click.option("--warmup", type=int, help="Steps until the highest learning rate."),
    click.option("--schedule", type=click.Choice(["cosine", "wsd"]), help="Course of the learning rate."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of weights, order and dropout."),
    click.option("--workers", metavar="MIN..MAX", help="Workers (default: 1 to the virtual ranks)."),
    click.option("--cpu", default="", help="Cores to reserve per worker (default: its threads)."),
    click.option("--gpus", default=AUTO, show_default=True, help=GPUS_HELP),
    click.option("--priority", default="batch", show_default=True, help="A band, or BAND+N."),
    click.option("--stop-at-step", type=int, default=0, help="End early, on the schedule of --steps."),
    click.option("--validate-every", type=int, help="Steps between validations; 0: only at the end."),
    click.option("--checkpoint-every", type=int, help="Steps between checkpoints."),
    click.option("--sample-every", type=int, help="Steps between samples of text; 0: only at the end."),
    click.option("--prompt", help="What samples begin with; for a tuning, what is asked."),
    click.option("--ignore-contract", is_flag=True, help="Go on although settings or machine differ."),
    click.option("-d", "--detach", is_flag=True, help="Do not follow; print the name."),
    click.option("--local", is_flag=True, help="Train in this process, without a cell."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)


def _shared(command: F) -> F:
    for option in reversed(_SHARED):
        command = option(command)
    return command


@click.command()
@click.argument("dataset")
@click.option("--model-size", type=click.Choice(list(SHAPES)), default="small", show_default=True)
@click.option("--layers", type=int, help="Instead of a size: number of layers.")
@click.option("--dim", type=int, help="Instead of a size: width.")
@click.option("--heads", type=int, help="Instead of a size: attention heads.")
@click.option("--kv-heads", type=int, help="Instead of a size: key-value heads.")
@click.option("--context", type=int, help="Most tokens the model will know positions for.")
@_shared
def train(
    dataset: str,
    model_size: str,
    layers: int | None,
    dim: int | None,
    heads: int | None,
    kv_heads: int | None,
    context: int | None,
    **options: Any,
) -> None:
    """Pre-train a language model on DATASET: a name, name@version or a path.

    Workers come and go while it runs; the weights do not depend on it. Ctrl-C stops it with a
    checkpoint, and the same command goes on from there.
    """
    given = {
        "num_hidden_layers": layers,
        "hidden_size": dim,
        "intermediate_size": None if dim is None else _feed_forward(dim),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads if kv_heads is not None else heads,
        "max_position_embeddings": context,
    }
    shape = _changed(SHAPES[model_size], given)
    _run("train", dataset, {"shape": shape}, options)


@click.command()
@click.argument("base")
@click.argument("dataset")
@click.option("--lora-rank", type=int, default=8, show_default=True, help="Rank of the adapters.")
@click.option("--lora-alpha", type=float, help="Strength of the adapters (default: twice the rank).")
@click.option("--full", is_flag=True, help="Train all weights instead of adapters.")
@_shared
def tune(
    base: str, dataset: str, lora_rank: int, lora_alpha: float | None, full: bool, **options: Any
) -> None:
    """Fine-tune BASE on the instruction pairs of DATASET.

    BASE is a run's name or a model directory. Only what the assistant says is learned.
    """
    alpha = 2.0 * lora_rank if lora_alpha is None else lora_alpha
    lora = None if full else Lora(rank=lora_rank, alpha=alpha)
    own = {"base_model": str(model_directory(base)), "lora": lora}
    _run("tune", dataset, own, options)


def _run(kind: str, dataset: str, own: dict[str, Any], options: dict[str, Any]) -> None:
    """Store the configuration, then train here, or in the cell and follow."""
    config = _config(kind, dataset, own, options)
    path = store_config(config)
    if options["local"]:
        _run_here(config, options["as_json"])
        return
    try:
        replicas = parse_replicas(options["workers"]) if options["workers"] else None
        cpu_millis = parse_cpu(options["cpu"]) if options["cpu"] else None
        priority = parse_priority(options["priority"])
        spec = train_job(config, path, replicas=replicas, priority=priority, cpu_millis=cpu_millis)
        gpu_type, gpu_millis = accelerators(options["gpus"])
    except ValueError as error:
        raise TidecellError(str(error), f"tide {kind} --help shows what each flag takes") from error
    resources = msgspec.structs.replace(spec.resources, gpu_millis=gpu_millis)
    spec = msgspec.structs.replace(spec, resources=resources, accelerator_type=gpu_type)
    _run_in_cell(config, spec, options["detach"], options["as_json"])


def _config(kind: str, dataset: str, own: dict[str, Any], options: dict[str, Any]) -> TrainConfig:
    from tidecell.data.dataset import load_manifest, resolve

    directory = resolve(dataset)
    default_name = dataset.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
    name = options["name"] or (default_name if kind == "train" else f"{default_name}-tuned")
    sizes = {
        "num_steps": options["steps"],
        "seq_len": options["seq_len"],
        "micro_batch": options["micro_batch"],
        "num_vranks": options["vranks"],
        "validate_every": options["validate_every"],
        "checkpoint_every": options["checkpoint_every"],
        "sample_every": options["sample_every"],
        "sample_prompt": options["prompt"],
    }
    course = {"lr": options["lr"], "warmup_steps": options["warmup"], "kind": options["schedule"]}
    config = TrainConfig(
        kind=kind,
        name=name,
        run_dir=str(Home() / "runs" / name),
        dataset=str(directory),
        seed=options["seed"],
        stop_at_step=options["stop_at_step"],
        ignore_contract=options["ignore_contract"],
        **own,
    )
    if kind == "tune":
        lr = FULL_LR if config.lora is None else ADAPTER_LR
        config = _changed(config, {**TUNE_DEFAULTS, "schedule": Schedule(lr=lr, warmup_steps=TUNE_WARMUP)})
    load_manifest(directory)  # a damaged dataset is refused here, not by a worker
    return _changed(_changed(config, sizes), {"schedule": _changed(config.schedule, course)})


# Short, and rows long enough for most functions: found by trying on the standard library's pairs.
TUNE_DEFAULTS: dict[str, Any] = {
    "num_steps": 40,
    "seq_len": 192,
    "weight_decay": 0.0,
    "validate_every": 0,
    "sample_prompt": "Write this Python function.\n\ndef area(width, height)\n\nReturn the area.",
}
ADAPTER_LR, FULL_LR = 6e-3, 1e-3
TUNE_WARMUP = 5

S = TypeVar("S", Shape, Schedule, TrainConfig)


def _changed(struct: S, values: dict[str, Any]) -> S:
    """Return a struct with the values that were given."""
    return msgspec.structs.replace(struct, **{k: v for k, v in values.items() if v is not None})


def _feed_forward(dim: int) -> int:
    """Return the usual width of a SwiGLU layer: 8/3 of the model's, in steps of 32."""
    return -(-8 * dim // 3 // 32) * 32


def _run_here(config: TrainConfig, as_json: bool) -> None:
    """Train in this process: one worker, no cell; Ctrl-C checkpoints."""
    try:
        from tidecell.train.loop import Training
    except ImportError as error:
        raise TidecellError(
            f"training needs a package that is not installed: {error.name}",
            "install it with: pip install 'tidecell[ai]'",
        ) from error
    from tidecell.cli.training_view import Bar, print_summary

    with Bar(config) as bar:
        training = Training(config, tell=bar.say, watch=bar.show)
        try:
            card = training.run()
        except SystemExit as left:
            bar.say(f"stopped after step {training.session.committed}; the same command goes on from there")
            raise SystemExit(left.code) from None
    print_json(card) if as_json else print_summary(config, card)


def _run_in_cell(config: TrainConfig, spec: JobSpec, detach: bool, as_json: bool) -> None:
    """Submit the job, and unless detached follow it to its end."""
    from tidecell.cli.training_view import follow, print_summary

    with Client.from_home() as client:
        job = client.submit(spec)
        if detach:
            if as_json:
                print_json(job)
            else:
                out.print(f"{job.name}   {job.state.value}   stop it: tide stop {job.name}")
            return
        try:
            done = follow(client, job, config)
        except KeyboardInterrupt:
            err.print(f"\nstopping {job.name}: it writes a checkpoint", style="yellow")
            client.stop(job.uid)
            client.wait(job.uid)
            err.print("the same command goes on from there")
            raise SystemExit(130) from None
    if done.state is not TaskState.SUCCEEDED:
        raise TidecellError(
            f"training '{job.name}' {done.state.value}" + (f": {done.message}" if done.message else ""),
            f"its output: tide logs {job.name}",
        )
    card = msgspec.json.decode((Path(config.run_dir) / "model" / "card.json").read_bytes())
    print_json(card) if as_json else print_summary(config, card)
