"""Arrays and sweeps as processes, through the command line."""

from __future__ import annotations

import json
from pathlib import Path


def test_an_array_runs_each_item_with_its_index(cell, client) -> None:
    script = 'echo "$TIDECELL_ARRAY_INDEX of $TIDECELL_ARRAY_COUNT"'
    done = cell.tide("run", "-n", "many", "--cpu", "0.5", "--array", "6%3", "--", "sh", "-c", script)
    assert sorted(done.stdout.splitlines()) == [f"{i} of 6" for i in range(6)]
    assert cell.tide("logs", "many", "--replica", "4").stdout == "4 of 6\n"
    assert "items      6: 6 SUCCEEDED; at most 3 at once" in cell.tide("status", "many").stdout


def test_a_sweep_gives_each_item_its_point(cell) -> None:
    args = ("--sweep", "lr=0.1,0.01", "--sweep", "bs=8,16", "--", "sh", "-c", 'echo "$lr $bs"')
    done = cell.tide("run", "--cpu", "1", *args)
    assert sorted(done.stdout.splitlines()) == ["0.01 16", "0.01 8", "0.1 16", "0.1 8"]


def test_failed_items_are_named_and_the_others_done(cell, short_tmp: Path) -> None:
    spec = short_tmp / "a.yaml"
    spec.write_text(
        "name: some\nrun: test $TIDECELL_ARRAY_INDEX != 2 || exit 7\nresources: {cpu: 0.5}\n"
        "array: {count: 5, parallel: 4}\n"
    )
    cell.tide("apply", "-y", "-f", str(spec))
    done = cell.tide("logs", "-f", "some")
    assert done.stdout == ""
    job = json.loads(cell.tide("status", "some", "--json").stdout)
    assert (job["state"], job["message"], job["exit_code"]) == ("FAILED", "1 of 5 items failed: 2", 7)
    assert job["array"]["counts"] == {"SUCCEEDED": 4, "FAILED": 1}
    assert job["array"]["failed"] == [2]


def test_an_array_is_stopped_whole(cell, client, wait_until) -> None:
    cell.tide("run", "-d", "-n", "long", "--cpu", "1", "--array", "500", "--", "sleep", "600")
    wait_until(lambda: client.job("long").running == 2)
    assert "0/500 done, 2 run" in cell.tide("ps").stdout
    cell.tide("stop", "long")
    job = client.job("long")
    assert job.array is not None
    assert job.array.counts == {"CANCELLED": 500}
