"""How few machines hold a workload: trials on small made-up traces, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tidecell.cli.sim import sim
from tidecell.scheduler.packing import POLICIES
from tidecell.sim.compaction import TRIALS, machines_needed, summed_up
from tidecell.sim.openb import Machines, Pods, read_machines, read_pods
from tidecell.structs.errors import DataError

PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"
NODES = "sn,cpu_milli,memory_mib,gpu,model\n" + "".join(f"m{i},8000,8192,2,T4\n" for i in range(6))


def _trace(folder: Path, pods: list[str]) -> tuple[Machines, Pods]:
    (folder / "nodes.csv").write_text(NODES)
    (folder / "pods.csv").write_text(PODS + "\n".join(pods) + "\n")
    machines = read_machines(folder / "nodes.csv")
    return machines, next(iter(read_pods([folder / "pods.csv"], machines.models).values()))


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize(("count", "least"), [(1, 1), (2, 1), (7, 4), (12, 6)])
def test_pods_of_half_a_machine_need_half_as_many(
    tmp_path: Path, policy: str, count: int, least: int
) -> None:
    machines, pods = _trace(tmp_path, [f"p{i},4000,1024,1,1000," for i in range(count)])
    assert machines_needed(pods, machines, policy, 3) == least


def test_a_cell_that_is_too_small_is_cloned(tmp_path: Path) -> None:
    machines, pods = _trace(tmp_path, [f"p{i},8000,1024,0,0," for i in range(20)])
    assert machines_needed(pods, machines, "tidecell", 0) == 20


def test_a_few_picky_pods_may_stay_pending_and_no_more(tmp_path: Path) -> None:
    small = [f"p{i},8,8,0,0," for i in range(998)]
    machines, pods = _trace(tmp_path, [*small, "x1,9000,8,0,0,", "x2,9000,8,0,0,"])
    assert machines_needed(pods, machines, "best-fit", 0) == 1
    machines, pods = _trace(tmp_path, [*small, *(f"x{i},9000,8,0,0," for i in range(3))])
    with pytest.raises(DataError, match="fit nowhere"):
        machines_needed(pods, machines, "best-fit", 0)


def test_the_figure_is_the_tenth_of_eleven_trials(tmp_path: Path) -> None:
    machines, pods = _trace(tmp_path, ["p,1000,1024,0,0,"])
    report = summed_up(pods, machines, "fgd", 5, [11, 3, 5, 7, 1, 9, 2, 4, 6, 8, 10])
    assert (report.needed_p90, report.machines, report.share) == (10, 6, 166.67)


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    machines, pods = _trace(tmp_path, ["p,1000,1024,0,0,"])
    with pytest.raises(DataError, match="no packing policy is named 'best'"):
        machines_needed(pods, machines, "best", 0)


def test_the_command_prints_eleven_trials_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    _trace(tmp_path, [f"p{i:02d},{rng.integers(1, 5) * 1000},1024,1,500," for i in range(24)])
    args = ["--trace", str(tmp_path / "pods.csv"), "--machines", str(tmp_path / "nodes.csv"), "--compact"]
    done = CliRunner().invoke(sim, [*args, "--seed", "4", "--json"], catch_exceptions=False)
    figures = json.loads(done.stdout)
    assert len(figures["needed"]) == TRIALS
    assert figures["needed_p90"] == sorted(figures["needed"])[9] >= 6  # 24 halves on two accelerators each
    assert CliRunner().invoke(sim, [*args, "--seed", "4", "--json"]).stdout == done.stdout
    table = CliRunner().invoke(sim, args, catch_exceptions=False).stdout
    assert "NEEDED (P90)" in table
    assert "tidecell" in table
    refused = CliRunner().invoke(sim, [*args, "--until", "6h"])
    assert "--compact packs" in str(refused.exception)
