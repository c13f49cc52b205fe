"""FGD's protocol on small made-up traces, and the packing kernels' fast and slow forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from tidecell.cli.sim import sim
from tidecell.scheduler.compiled import can_compile
from tidecell.scheduler.packing import ANY_TYPE, POLICIES
from tidecell.sim.openb import Machines, Pods, machines_of, pods_of, read_machines, read_pods
from tidecell.sim.packing import run_packing
from tidecell.sim.simple import make_machine
from tidecell.sim.workload import SimJob
from tidecell.structs.errors import DataError
from tidecell.structs.job import JobSpec, Replicas
from tidecell.structs.resources import Resources

NODES = "sn,cpu_milli,memory_mib,gpu,model\nb,64000,262144,2,T4\na,96000,393216,8,G2\nc,32000,131072,0,\n"
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"


def _trace(folder: Path, pods: list[str], nodes: str = NODES) -> tuple[Machines, Pods]:
    (folder / "nodes.csv").write_text(nodes)
    (folder / "pods.csv").write_text(PODS + "\n".join(pods) + "\n")
    machines = read_machines(folder / "nodes.csv")
    return machines, next(iter(read_pods([folder / "pods.csv"], machines.models).values()))


def test_what_fits_is_allocated_whole(tmp_path: Path) -> None:
    machines, pods = _trace(tmp_path, [f"p{i},1000,1024,1,1000," for i in range(10)])
    report = run_packing(pods, machines, "tidecell", 42, 1.0, compile_kernels=False)
    assert report.allocated[-1] == pytest.approx(100.0)
    assert report.bound == pytest.approx(100.0)


def test_a_spec_keeps_pods_on_their_model(tmp_path: Path) -> None:
    machines, pods = _trace(tmp_path, [f"p{i},1000,1024,1,1000,T4" for i in range(10)])
    report = run_packing(pods, machines, "tidecell", 42, 1.0, compile_kernels=False)
    assert report.allocated[-1] == pytest.approx(20.0)  # two of ten accelerators are T4
    assert report.bound == pytest.approx(20.0, abs=0.01)


def test_cpu_that_is_gone_strands_accelerators(tmp_path: Path) -> None:
    machines, pods = _trace(tmp_path, [f"p{i},48000,1024,1,1000," for i in range(10)])
    report = run_packing(pods, machines, "best-fit", 42, 1.0, compile_kernels=False)
    assert report.allocated[-1] == pytest.approx(30.0)  # two on the large machine, one on the small one


@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_policy_is_deterministic_and_never_overfills(tmp_path: Path, policy: str) -> None:
    rng = np.random.default_rng(5)
    rows = [
        f"p{i:03d},{rng.integers(1, 9) * 1000},{rng.integers(1, 9) * 1024},1,{rng.choice([200, 500, 1000])},"
        for i in range(60)
    ]
    machines, pods = _trace(tmp_path, rows)
    first = run_packing(pods, machines, policy, 7, 1.3, compile_kernels=False)
    assert first == run_packing(pods, machines, policy, 7, 1.3, compile_kernels=False)
    assert first.allocated[-1] <= first.bound <= 100.0
    assert list(first.allocated) == sorted(first.allocated)


@pytest.mark.skipif(not can_compile(), reason="numba is not installed (pip install 'tidecell[scale]')")
@pytest.mark.parametrize("policy", ["tidecell", "fgd"])
def test_compiled_and_interpreted_runs_are_equal(tmp_path: Path, policy: str) -> None:
    rows = [f"p{i:03d},{1000 + 500 * (i % 7)},2048,1,{[150, 400, 600, 1000][i % 4]}," for i in range(50)]
    machines, pods = _trace(tmp_path, rows)
    slow = run_packing(pods, machines, policy, 3, 1.3, compile_kernels=False)
    assert run_packing(pods, machines, policy, 3, 1.3) == slow


def test_an_unknown_policy_names_those_there_are(tmp_path: Path) -> None:
    machines, pods = _trace(tmp_path, ["p,1000,1024,1,1000,"])
    with pytest.raises(DataError, match="no packing policy is named 'magic'") as error:
        run_packing(pods, machines, "magic")
    assert "tidecell, fgd, best-fit" in error.value.hint


def test_machines_without_accelerators_are_refused(tmp_path: Path) -> None:
    machines, pods = _trace(
        tmp_path, ["p,1000,1024,1,1000,"], "sn,cpu_milli,memory_mib,gpu,model\nc,1000,1024,0,\n"
    )
    with pytest.raises(DataError, match="no accelerators"):
        run_packing(pods, machines)


def test_bad_values_and_missing_columns_are_named_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2"):
        _trace(tmp_path, ["p,many,1024,1,1000,"])
    (tmp_path / "nodes.csv").write_text("sn,cpu_milli\na,1\n")
    with pytest.raises(DataError, match="lacks the column"):
        read_machines(tmp_path / "nodes.csv")


def test_the_command_prints_the_share_at_each_hundredth(tmp_path: Path) -> None:
    _trace(tmp_path, [f"p{i},1000,1024,1,1000," for i in range(10)])
    files = ["--trace", str(tmp_path / "pods.csv"), "--machines", str(tmp_path / "nodes.csv")]
    done = CliRunner().invoke(sim, [*files, "--policy", "fgd", "--arrived", "1.0", "--seed", "42", "--json"])
    report = json.loads(done.output)
    assert (report["policy"], report["seed"], len(report["allocated"])) == ("fgd", 42, 100)
    assert report["allocated"][-1] == pytest.approx(100.0)


def test_a_trace_of_another_format_is_packed_by_its_replicas():
    fleet = [make_machine("b", 8000, 64 << 30, 4, "H100"), make_machine("a", 8000, 64 << 30, 2, "T4")]
    machines = machines_of(fleet, "two")
    assert (machines.names, machines.models) == (("a", "b"), ("H100", "T4"))
    spec = JobSpec("j", run="x", resources=Resources(1500, (1 << 30) + 1, 1000), replicas=Replicas(1, 3))
    typed = replace(spec, name="t", replicas=Replicas(1, 1), accelerator_type="h100")
    pods = pods_of([SimJob(typed, 0.0, None), SimJob(spec, 5.0, 1.0)], machines.models)
    assert pods.asks_PQ.tolist() == [[1500, 1025, 1000, ANY_TYPE]] * 3 + [[1500, 1025, 1000, 1]]
    assert run_packing(pods, machines, seed=1, arrived_until=0.6).allocated_at_end == pytest.approx(50.0)


def test_pods_of_which_none_may_arrive_are_refused():
    machines = machines_of([make_machine("a", 8000, 64 << 30, 2, "T4")], "one")
    spec = JobSpec("j", run="x", resources=Resources(0, 0, 8000))
    with pytest.raises(DataError, match="more accelerators than may arrive"):
        run_packing(pods_of([SimJob(spec, 0.0, None)], machines.models), machines)
