"""How fast an elastic training gives up a worker and takes one back, and what it costs.

    python benchmarks/elastic_training.py [--rounds 5] [--dim 192] [--layers 4] [--kill] > out.jsonl

Trains a small language model on random tokens with two workers, takes one away in the middle of a step
(a notice, or SIGKILL with --kill), gives it back, and repeats. One JSON line per round, one of the machine
before them, and after them one per figure with the medians:

    released_s        order given -> the worker says that it uses nothing any more (killed: its exit)
    exit_s            order given -> its process is gone
    first_commit_s    order given -> first step committed by the smaller group
    cold_start_s      process started -> newcomer ready; the training goes on meanwhile
    grow_pause_s      how long the workers stood still to take the newcomer in
    lost_steps        steps that had to be done again
    digests_equal     weights and optimizer state equal those of one worker that was never disturbed

Expected on two free cores, 2 million parameters: released and first_commit within a micro-batch and a step,
grow_pause below 0.1 s, no lost steps, digests equal. Baselines to hold against it: torchrun restarts all
workers and falls back to a checkpoint; torchft keeps going but changes the global batch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "integration"), str(ROOT / "tests" / "unit" / "train")]

from scripted_agent import ScriptedAgent  # noqa: E402
from synthetic_rows import LOADER, make_dataset  # noqa: E402

from tidecell.train.config import Schedule, Shape, TrainConfig  # noqa: E402
from tidecell.train.history import count_steps, read_digests, read_lines  # noqa: E402
from tidecell.train.jobs import store_config  # noqa: E402

PATHS = os.pathsep.join([str(ROOT / "tests" / "unit" / "train")])


def main() -> None:
    """Run the rounds and print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--kill", action="store_true", help="SIGKILL instead of a notice")
    options = parser.parse_args()
    print(json.dumps(machine(options)), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        path = configure(root, "elastic", options, num_steps=100_000)
        rounds = disturbed(path, options.rounds, options.kill)
        lost = count_steps(path.parent)[1]
        steps = read_digests(path.parent)
        alone = configure(root, "alone", options, num_steps=100_000, stop_at_step=max(steps))
        command = [sys.executable, "-m", "tidecell.train.worker", "--config", str(alone)]
        env = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        reference = read_digests(alone.parent)
        pauses = [e for e in read_lines(path.parent / "metrics.jsonl") if e.get("event") == "regroup"]
        grown = [e["ms"] / 1000 for e in pauses if e["world_size"] == 2 and e["generation"] > 1]
    for number, result in enumerate(rounds):
        print(json.dumps({"round": number, **result}))
    common = sorted(set(steps) & set(reference))
    summary = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    summary |= {
        "grow_pause_s": round(statistics.median(grown), 4) if grown else None,
        "lost_steps": lost,
        "digests_equal": bool(common) and all(steps[s] == reference[s] for s in common),
        "digests_compared": len(common),
    }
    for key, value in summary.items():
        unit = "s" if key.endswith("_s") else "count"
        row = {
            "name": f"elastic_training.{key}",
            "value": value,
            "unit": unit,
            "baseline": None,
            "ratio": None,
        }
        print(json.dumps(row))


def configure(root: Path, name: str, options: argparse.Namespace, **changes: Any) -> Path:
    """Store a configuration; the dataset is made on first use."""
    dataset = root / "data"
    if not dataset.exists():
        make_dataset(dataset)
    config = TrainConfig(
        name=name,
        run_dir=str(root / name),
        dataset=str(dataset),
        loader=LOADER,
        shape=Shape(
            hidden_size=options.dim,
            intermediate_size=-(-options.dim * 8 // 3 // 32) * 32,
            num_hidden_layers=options.layers,
        ),
        micro_batch=options.micro_batch,
        seq_len=options.seq_len,
        schedule=Schedule(lr=1e-3),
        validate_every=0,
        validate_rows=4,
        checkpoint_every=10,
        sample_prompt="A",
        sample_tokens=2,
        **changes,
    )
    return store_config(config)


def disturbed(path: Path, num_rounds: int, kill: bool) -> list[dict[str, Any]]:
    """Take a worker away and give it back, so many times; return the times of each round."""
    argv = ["-m", "tidecell.train.worker", "--config", str(path)]
    results = []
    with ScriptedAgent(argv, 2, {"PYTHONPATH": PATHS}) as agent:
        agent.start(0)
        agent.start(1)
        until_size(agent, 2, 3)
        agent.group.min_members = 1
        for _ in range(num_rounds):
            results.append(one_round(agent, kill))
            until_size(agent, 2, 12)  # a checkpoint with its digest lies between two rounds
        agent.stop_job()
        for index in (0, 1):
            agent.exit_status(index)
    return results


def one_round(agent: ScriptedAgent, kill: bool) -> dict[str, Any]:
    """Take worker 1 away, wait for the smaller group, start it again, wait for the larger."""
    seen = len(agent.reports)
    ordered = time.monotonic()
    if kill:
        agent.kill(1)
    else:
        agent.tell_to_leave(1, new_size=1, cause="preempt")
    agent.until(lambda: 1 not in agent._links, "exit")
    agent.until(lambda: any(r.get("world_size") == 1 for r in agent.reports[seen:]), "first commit")
    first = next(r["at_agent"] for r in agent.reports[seen:] if r.get("world_size") == 1)
    gone = agent.when("exit", 1)
    released = gone if kill else agent.when("released", 1)
    started = time.monotonic()
    agent.start(1)
    until_size(agent, 2, 1)
    return {
        "released_s": round(released - ordered, 4),
        "exit_s": round(gone - ordered, 4),
        "first_commit_s": round(first - ordered, 4),
        "cold_start_s": round(agent.when("ready", 1) - started, 4),
    }


def until_size(agent: ScriptedAgent, size: int, steps: int) -> None:
    """Wait until a group of this size has committed some more steps."""
    last = max((r.get("step", 0) for r in agent.reports), default=0)
    agent.until(
        lambda: any(r.get("world_size") == size and r.get("step", 0) >= last + steps for r in agent.reports),
        f"{steps} steps of {size} workers",
        300,
    )


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers were taken on."""
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "benchmark": "elastic_training",
        "machine": f"{os.cpu_count()} cpus, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "commit": commit,
        "options": vars(options),
    }


if __name__ == "__main__":
    main()
