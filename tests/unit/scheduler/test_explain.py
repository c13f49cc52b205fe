"""What `tide why` and `tide plan` say, whole."""

from __future__ import annotations

from textwrap import dedent

import pytest
from cell_harness import Cell, job_spec, service_spec

from tidecell.client.views import WhyView
from tidecell.scheduler.explain import explain_plan, explain_why, render_plan, render_why
from tidecell.scheduler.fixes import largest
from tidecell.scheduler.words import about, listed
from tidecell.structs.job import Band, Checkpoint, Preemption, Reason, Retry, RetryOn, Scaling


def why(cell: Cell, name: str) -> WhyView:
    return explain_why(cell.snapshot(), cell.job(name).uid, cell.now_s)


def said(cell: Cell, name: str) -> str:
    return render_why(why(cell, name), cell.now_s)


def busy_cell() -> Cell:
    cell = Cell().machine("r1", 8).machine("r2", 8)
    cell.submit(service_spec("chat", cpu=2, replicas=4))
    cell.submit(job_spec("sweep", replicas=(2, 6), max_duration_s=3600.0))
    cell.submit(job_spec("dev", band=Band.BEST_EFFORT))
    return cell.up().after(600.0)


def test_why_names_needs_holders_fixes_and_when_otherwise():
    cell = busy_cell()
    cell.submit(job_spec("llm", cpu=2, replicas=(3, 8)))
    cell.after(120.0)
    assert said(cell, "llm") == dedent("""\
        llm  PENDING 2m   WaitingForCapacity
          needs     3 x 2 cpu, together       free now: r2: 1 cpu
          held by   r1: chat (production, running 12m) 8 cpu
                    r2: sweep (batch, running 12m) 6 cpu, dev (best-effort, running 12m) 1 cpu
          it would start now if
            replicas.min 3 -> 1                  tide scale llm 1..8        (evicts dev)
            resources.cpu 2 -> 0.5 in the spec                              (evicts dev)
            priority batch -> production         tide prio llm production   (shrinks sweep 6 -> 2, evicts dev)
            sweep replicas 2..6 -> 2             tide scale sweep 2         (loses at most 12m of work)
            chat stops                           tide stop chat             (loses no request)
          would not help  priority batch -> batch+10   (chat is in a higher band, sweep is in the same band)
          otherwise in at most 48m30s, when sweep must have ended, if nothing more important comes""")


def test_why_of_what_waits_for_victims_says_until_when():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("low", replicas=2, grace_period_s=20.0))
    cell.up().after(30.0).submit(service_spec("chat", cpu=2))
    assert said(cell, "chat") == dedent("""\
        chat  PENDING 0s   WaitingForPreempted
          needs     2 cpu       free now: nothing
          because   the capacity held for it is being vacated
          held by   m: low (batch, running 30s, leaving) 2 cpu
          otherwise in at most 20s, when low must have ended, if nothing more important comes""")


def test_why_of_what_comes_after_another():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("tokenize"))
    cell.submit(job_spec("train", after=("tokenize",)))
    cell.after(5.0)
    assert said(cell, "train") == dedent("""\
        train  PENDING 5s   Dependency
          needs     1 cpu       free now: m: 1 cpu
          because   comes after 'tokenize'
          it would start now if
            after: without 'tokenize' in the spec
          otherwise unknown: when 'tokenize' succeeded""")


def test_why_of_what_no_machine_could_hold_offers_what_one_has():
    cell = Cell().machine("small", 2, memory_gib=4)
    spec = job_spec("big", cpu=3, memory_gib=8, retry=Retry((RetryOn.NO_CAPACITY,)))
    cell.submit(spec)
    assert said(cell, "big") == dedent("""\
        big  PENDING 0s   NoMatchingMachine
          needs     3 cpu, 8.0 GiB       free now: small: 2 cpu, 4.0 GiB
          because   the empty cell holds 0
          it would start now if
            resources.cpu 3 -> 2 and resources.memory 8GiB -> 4GiB in the spec
          would not help  priority batch -> batch+10     (no machine is large enough)
                          priority batch -> production   (no machine is large enough)
          otherwise never: this cell could not hold it even if it were empty""")


def test_why_of_a_job_behind_another_offers_to_pass_it():
    cell = Cell().machine("m", 4)
    cell.submit(job_spec("runs", cpu=2, preemption=Preemption.NEVER))
    cell.up().submit(job_spec("head", cpu=4))
    cell.submit(job_spec("small"))
    view = why(cell, "small")
    assert view.reasons == (Reason.PRIORITY, Reason.WAITING_FOR_CAPACITY)
    assert next((f.change, f.command) for f in view.fixes) == (
        "priority batch -> batch+1",
        "tide prio small batch+1",
    )


def test_why_of_a_shrunk_job_says_who_holds_the_rest():
    cell = Cell().machine("m", 4)
    cell.submit(job_spec("train", replicas=(1, 4)))
    cell.up().submit(service_spec("chat", cpu=3))
    cell.leave().up()
    view = why(cell, "train")
    assert view.shrunk == "1 of up to 4 replicas: chat (production) holds the rest"
    assert "one more would start now if\n    chat stops   tide stop chat" in render_why(view, cell.now_s)


def test_why_of_a_service_that_wants_no_more_says_so():
    cell = Cell().machine("m", 4)
    cell.submit(service_spec("chat", replicas=(1, 3), scaling=Scaling()))
    cell.up()
    assert said(cell, "chat") == dedent("""\
        chat  RUNNING 0s
          it waits for nothing
          runs      1 of up to 3 replicas: no more are wanted now""")


def test_why_of_a_back_off_says_how_long():
    cell = Cell().machine("m", 2)
    cell.submit(job_spec("a", retry=Retry((RetryOn.ERROR,), 3)))
    cell.up().down(cell.ref("a"), exit_code=1)
    view = why(cell, "a")
    assert (view.reasons, view.detail) == ((Reason.BACKOFF,), "starts again in 0.5 s after a failure")
    assert view.expected_s == cell.now_s + 0.5


def test_why_without_any_machine():
    cell = Cell()
    cell.submit(job_spec("a"))
    view = why(cell, "a")
    assert (view.detail, view.free_now) == ("no machine has joined yet", "no machine has joined")
    assert (view.fixes, view.expected_s, view.expected_why) == ((), 0.0, "unknown: when a machine joins")


def test_why_of_nobody_is_an_error():
    with pytest.raises(ValueError, match=r"no job 'a\.1'"):
        explain_why(Cell().snapshot(), "a.1", 0.0)


def test_no_single_holder_is_enough_then_several_are_named():
    cell = Cell().machine("m", 4)
    for name in ("a", "b", "c", "d"):
        cell.submit(job_spec(name))
    cell.up().submit(job_spec("gang", replicas=2))
    stops = [f.command for f in why(cell, "gang").fixes if "stop" in f.command]
    assert stops == ["tide stop a; tide stop b"]


def test_plan_says_who_gives_way_and_what_that_costs():
    cell = busy_cell()
    train = job_spec("train", cpu=1, replicas=(1, 2), checkpoint=Checkpoint("ckpt/", 60.0))
    burst = service_spec("burst", cpu=3)
    view = explain_plan(cell.snapshot(), [burst, train], ("create burst", "create train"))
    assert render_plan(view) == dedent("""\
        create burst
        create train

        would be told to leave for it
          shrink sweep   2 replicas on r2   4 remain   loses at most 10m of work
          evict dev      1 replica on r2    0 remain   loses at most 10m of work

        waits
          burst   1 replica    WaitingForPreempted   takes the place of 'sweep'
          train   2 replicas   WaitingForPreempted   takes the place of 'dev'

        everything starts once those told to leave have left""")


def test_plan_of_nothing_new():
    assert render_plan(explain_plan(busy_cell().snapshot(), [], ())) == "nothing to change"


def test_plan_of_what_does_not_fit_says_so():
    cell = busy_cell()
    view = explain_plan(cell.snapshot(), [job_spec("x", cpu=8, replicas=2)], ("create x",))
    assert not view.starts
    assert [(w.job, w.reasons) for w in view.waits] == [("x", (Reason.WAITING_FOR_CAPACITY,))]


def test_the_largest_that_works_is_found():
    for limit in range(12):
        asked: list[int] = []
        assert largest(10, lambda k, m=limit, a=asked: not a.append(k) and k <= m) == min(limit, 10)
        assert len(asked) <= 5


def test_phrases():
    assert [about(s) for s in (0, 59.6, 3725, 90061)] == ["0s", "1m", "1h2m", "1d1h"]
    assert [listed(n) for n in ([], ["a"], ["a", "b"], ["a", "b", "c"], ["a", "a"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
        "a",
    ]
