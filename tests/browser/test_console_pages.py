"""The console's pages about work, reservations, usage and events, and what may be done there."""

from __future__ import annotations

import json
import re

import pytest
from fake_console_cell import TOKEN, job_views
from msgspec.structs import replace
from test_console_page import CONTRAST, Tab, browser, cell, pytestmark, sync_api, tab

from tidecell.client import listing_views as lv
from tidecell.client import views as v

__all__ = ["browser", "cell", "pytestmark", "tab"]
expect = sync_api.expect
PAGES = [
    "overview",
    "queue",
    "jobs",
    "services",
    "sessions",
    "schedules",
    "allocs",
    "machines",
    "teams",
    "usage",
    "events",
    "plan",
]


def test_the_queue_shows_places_reasons_and_the_whole_why_with_commands_to_copy(tab: Tab) -> None:
    page = tab.visit("queue")
    card = tab.card("Queue")
    expect(card.get_by_role("row", name=re.compile("eval-sweep"))).to_contain_text("place 1 in the team")
    expect(card).to_contain_text("WaitingForCapacity")
    page.get_by_role("button", name="Why eval-sweep waits").click()
    expect(card).to_contain_text("1 of 1 that wait, 1 of team vision")
    expect(card.locator(".holders")).to_contain_text("pretrain (batch) 2 tasks on laptop, 1.4 cpu, 2 GiB")
    expect(card.locator(".fixes")).to_contain_text("shrinks pretrain 2 -> 1")
    expect(card.locator(".no-help")).to_contain_text("0.6 cpu is more than the 0.2 that is free")
    expect(card).to_contain_text(re.compile(r"otherwise about \d\d:\d\d \(\d\d:\d\d to \d\d:\d\d\)"))
    expect(card).to_contain_text("Asked of the cell as it was at event 812")
    expect(card.locator("code.command").first).to_have_text("tide prio eval-sweep production")


def test_copying_a_command_puts_it_into_the_clipboard(tab: Tab) -> None:
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = tab.visit("queue?details=eval-sweep.1")
    button = page.get_by_role("button", name="Copy: tide prio eval-sweep production")
    button.click()
    expect(button).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "tide prio eval-sweep production"


def test_schedules_show_firings_to_come_runs_that_were_and_what_overlap_does(tab: Tab) -> None:
    tab.visit("schedules")
    card = tab.card("Schedules")
    nightly = card.get_by_role("row", name=re.compile("nightly"))
    expect(nightly).to_contain_text("0 3 * * *")
    expect(nightly).to_contain_text(re.compile(r"in (9 min 5\d s|10 min 0 s)"))
    expect(nightly).to_contain_text("skips a firing while a run goes on")
    expect(nightly).to_contain_text("✓ SUCCEEDED, took 1 min 0 s")
    weekly = card.get_by_role("row", name=re.compile("weekly"))
    expect(weekly).to_contain_text("does not fire until it is released")


def test_an_alloc_shows_its_envelopes_who_is_inside_and_the_free_room(tab: Tab) -> None:
    tab.visit("allocs")
    card = tab.card("Alloc lab")
    used = card.get_by_role("row", name=re.compile("lab.0"))
    expect(used).to_contain_text("0.5 in use · of 2")
    expect(used).to_contain_text("free: 1.5 cpu, 1 GiB")
    expect(used).to_contain_text("probe/0 ● RUNNING 0.5 cpu, 1 GiB")
    expect(card.get_by_role("row", name=re.compile("lab.1"))).to_contain_text("asks for 2 cpu, 2 GiB")
    expect(card).to_contain_text("waits to enter: next")


def test_usage_is_stacked_over_time_by_group_with_totals_and_cost(tab: Tab) -> None:
    page = tab.visit("usage?window=1h")
    card = tab.card("Usage over time")
    assert len(card.locator("path[data-group=vision]").get_attribute("d") or "") > 60
    expect(card.locator("path[data-group=speech]")).to_have_count(1)
    totals = tab.card("Totals").get_by_role("row", name=re.compile("^vision"))
    expect(totals).to_contain_text("12")  # asked: 9 hours and one more in each of three steps
    expect(totals).to_contain_text("0.45 EUR")
    expect(totals).to_contain_text("1.5 H100")
    slider = page.get_by_role("slider", name="Step of the usage chart")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"vision 3, speech 1$"))
    page.get_by_role("combobox", name="By", exact=True).select_option("job")
    expect(card.locator("path[data-group=a-vision]")).to_have_count(1)
    assert page.url.endswith("window=1h&by=job&measure=cpu")
    asked = [path for path in tab.cell.asked if path.startswith("/v1/usage")]
    assert "by=job" in asked[-1]
    assert "every=60" in asked[-1]


def test_a_service_shows_its_update_versions_and_disruption_budget(tab: Tab) -> None:
    page = tab.visit("services")
    card = tab.card("Versions and budgets")
    expect(card).to_contain_text("canary to version 2: 1 healthy, 2 old")
    expect(card).to_contain_text("0 away, at most 1: 1 more may go")
    expect(card.locator("code.command")).to_have_text("tide rollback chat 1")
    page.get_by_role("button", name="Details of chat").first.click()
    panel = page.get_by_role("complementary")
    expect(panel.get_by_role("region", name="Versions", exact=True)).to_contain_text("env.R: 1 -> 2")


def test_events_are_filtered_by_kind_and_the_filter_stands_in_the_address(tab: Tab) -> None:
    page = tab.visit("events")
    card = tab.card("Events")
    expect(card).to_contain_text("TaskStarted")
    page.get_by_label("Kind").select_option("TaskNoticed")
    expect(card.get_by_role("row")).to_have_count(2)
    expect(card).to_contain_text("PREEMPTED by chat")
    assert "kind=TaskNoticed" in page.url
    page.go_back()
    expect(card).to_contain_text("TaskStarted")


def test_a_dev_session_says_when_it_was_used_last_and_when_it_ends(tab: Tab) -> None:
    job = job_views(0)[1]
    now_s = tab.page.evaluate("Date.now() / 1000")
    used = {"last_used_s": now_s - 600, "idle_timeout_s": 1800.0, "started_s": now_s - 900}
    tab.cell.more_jobs = [replace(job, uid="shell.1", name="shell", kind="dev", **used)]
    tab.visit("sessions")
    row = tab.card("Dev sessions").get_by_role("row", name=re.compile("shell"))
    expect(row).to_contain_text(re.compile(r"10 min \d+ s ago"))
    expect(row).to_contain_text(re.compile(r"ends in (19 min \d+ s|20 min 0 s) if nobody uses it"))
    expect(row.locator("code.command")).to_have_text("tide attach shell")


# ------------------------------------------------------------------------------------- actions


def test_stopping_asks_first_and_escape_means_no(tab: Tab) -> None:
    page = tab.visit("jobs?details=pretrain.1")
    page.get_by_role("button", name="Stop", exact=True).click()
    dialog = page.get_by_role("dialog", name="Stop pretrain?")
    expect(dialog).to_contain_text("2 replicas that run are told to leave")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("complementary")).to_be_visible()
    assert tab.cell.done == []
    page.get_by_role("button", name="Stop", exact=True).click()
    dialog.get_by_label("at once").check()
    expect(dialog.locator("code.command")).to_have_text("tide stop pretrain --now")
    dialog.get_by_role("button", name="Stop").click()
    expect(dialog).to_have_count(0)
    assert [(m, p) for m, p, _ in tab.cell.done] == [("DELETE", "/v1/jobs/pretrain.1?now=1&")]


@pytest.mark.parametrize(
    ("button", "fields", "typed", "call", "body"),
    [
        ("Scale", {"min": "2", "max": "6"}, "tide scale chat 2..6", "PATCH chat.1",
         {"replicas": {"min": 2, "max": 6}}),
        ("Priority", {"priority": "batch+5"}, "tide prio chat batch+5", "PATCH chat.1",
         {"priority": "batch+5"}),
        ("Promote", {}, "tide promote chat", "POST chat.1/promote", None),
        ("Roll back", {"version": "1"}, "tide rollback chat 1", "POST chat.1/rollback", {"version": 1}),
    ],
)  # fmt: skip
def test_an_action_says_what_to_type_for_the_same_and_does_that(
    tab: Tab, button: str, fields: dict[str, str], typed: str, call: str, body: object
) -> None:
    page = tab.visit("services?details=chat.1")
    page.get_by_role("button", name=button, exact=True).click()
    dialog = page.get_by_role("dialog")
    for name, value in fields.items():
        dialog.get_by_label(name, exact=True).fill(value)
    expect(dialog.locator("code.command")).to_have_text(typed)
    dialog.get_by_role("button", name=button, exact=True).click()
    expect(dialog).to_have_count(0)
    method, path, sent = tab.cell.done[0]
    assert f"{method} {path}" == f"{call.replace(' ', ' /v1/jobs/')}?"
    assert (json.loads(sent) if sent else None) == body


def test_a_machine_is_drained_after_a_question(tab: Tab) -> None:
    page = tab.visit("machines")
    page.get_by_role("button", name="Drain").click()
    dialog = page.get_by_role("dialog", name="Drain laptop?")
    dialog.get_by_label("deadline, minutes").fill("3")
    expect(dialog.locator("code.command")).to_have_text("tide drain laptop --deadline 3m")
    dialog.get_by_role("button", name="Drain").click()
    expect(dialog).to_have_count(0)
    assert tab.cell.done == [("POST", "/v1/machines/laptop/drain?", b'{"deadline_s":180}')]


def test_a_refusal_stands_in_the_dialog(tab: Tab) -> None:
    page = tab.visit("jobs?details=pretrain.1")
    page.get_by_role("button", name="Scale").click()
    tab.cell.refuse = "user 'ana' is a member of team 'speech'"
    page.get_by_role("dialog").get_by_role("button", name="Scale").click()
    expect(page.get_by_role("alert")).to_contain_text("user 'ana' is a member of team 'speech'")
    tab.errors.clear()  # the browser logs an answer of 403


@pytest.mark.parametrize(
    ("me", "mine", "others"),
    [
        (lv.Me("eve", "viewer"), 0, 0),
        (lv.Me("ana", "member", "vision"), 1, 0),
        (lv.Me("ops", "operator"), 1, 1),
    ],
    ids=["viewer", "member", "operator"],
)
def test_only_those_who_may_are_offered_to_change_something(
    tab: Tab, me: lv.Me, mine: int, others: int
) -> None:
    tab.cell.me = me
    page = tab.visit("jobs?details=eval-sweep.1")  # of team vision
    panel = page.get_by_role("complementary", name="Details of eval-sweep")
    expect(panel).to_contain_text("WaitingForCapacity")
    expect(panel.get_by_role("button", name="Stop", exact=True)).to_have_count(mine)
    page.goto(f"{tab.server.url}#/jobs?details=pretrain.1")  # of no team
    panel = page.get_by_role("complementary", name="Details of pretrain")
    expect(panel).to_contain_text("PREEMPTED by chat")
    expect(panel.get_by_role("button", name="Stop", exact=True)).to_have_count(others)


# ------------------------------------------------------------------------ hostile, large, away

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def test_names_and_texts_that_look_like_html_stay_text(tab: Tab) -> None:
    job = job_views(0)[2]
    evil = {
        "name": HOSTILE,
        "command": HOSTILE,
        "team": HOSTILE,
        "labels": {HOSTILE: HOSTILE},
        "message": HOSTILE,
    }
    waiting = v.WaitingStatus(job.waiting.reasons, HOSTILE, 1)  # type: ignore[union-attr]
    tab.cell.more_jobs = [replace(job, uid="evil.1", waiting=waiting, **evil)]
    for page_name in ("overview", "queue", "jobs?details=evil.1"):
        page = tab.visit(page_name)
        expect(page.get_by_role("main")).to_contain_text(HOSTILE)
        assert page.locator("#app img, #app script").count() == 0
        assert page.title().endswith("Tidecell")


def test_a_list_of_2000_jobs_comes_in_pages_and_is_searched_by_the_server(tab: Tab) -> None:
    job = job_views(0)[3]
    tab.cell.more_jobs = [replace(job, uid=f"j{i}.1", name=f"j{i}") for i in range(2000)]
    page = tab.visit("jobs")
    card = tab.card("Jobs")
    expect(card.get_by_role("row")).to_have_count(51)
    expect(card).to_contain_text("1 to 50 of 2,004")
    page.get_by_role("button", name="Next").click()
    expect(card).to_contain_text("51 to 100 of 2,004")
    assert "offset=50" in page.url
    page.get_by_label("Name").fill("j1999")
    page.keyboard.press("Enter")
    expect(card.get_by_role("row")).to_have_count(2)


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_each_page_fits_the_window(tab: Tab, width: int) -> None:
    tab.page.set_viewport_size({"width": width, "height": 844})
    tab.open()
    for name in PAGES:
        page = tab.turn_to(name)
        assert page.evaluate("document.documentElement.scrollWidth") == width, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_each_page_stands_out(tab: Tab, scheme: str) -> None:
    tab.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    tab.open()
    for name in PAGES:
        assert tab.turn_to(name).evaluate(CONTRAST) == [], name


def test_each_page_of_an_empty_cell_says_what_to_do(tab: Tab) -> None:
    tab.cell.idle = True
    said = {
        "queue": "tide plan -f FILE",
        "jobs": "tide run -- echo hello",
        "services": "tide serve MODEL",
        "sessions": "tide dev",
        "schedules": "tide apply -f FILE",
        "allocs": "tide alloc lab",
        "teams": "tide quota apply",
        "usage": "tide run -- echo hello",
        "plan": "Type or paste a spec",
    }
    tab.open()
    for name, words in said.items():
        expect(tab.turn_to(name).get_by_role("main")).to_contain_text(words)


def test_a_token_that_expires_is_said_and_a_new_one_goes_on_at_the_same_page(tab: Tab) -> None:
    page = tab.visit("schedules")
    expect(tab.card("Schedules")).to_contain_text("nightly")
    tab.cell.token = "another"
    expect(page.get_by_role("alert")).to_contain_text("It may have expired")
    page.get_by_label("Token").fill("another")
    page.keyboard.press("Enter")
    expect(tab.card("Schedules")).to_contain_text("nightly")
    assert all("401" in error for error in tab.errors)
    tab.errors.clear()


def test_pages_are_reached_by_keyboard_and_take_the_focus(tab: Tab) -> None:
    page = tab.open()
    expect(tab.card("Jobs")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    link = page.get_by_role("navigation", name="Pages").get_by_role("link", name="Allocs")
    link.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main", name="Allocs")).to_be_focused()
    expect(link).to_have_attribute("aria-current", "page")


def test_what_has_not_changed_is_not_sent_again(tab: Tab) -> None:
    page = tab.visit("schedules")
    expect(tab.card("Schedules")).to_contain_text("nightly")
    with page.expect_response(lambda r: r.url.endswith("/v1/cell") and r.status == 304):
        pass


def test_a_page_is_not_asked_for_again_while_nothing_happens_in_the_cell(tab: Tab) -> None:
    page = tab.visit("allocs")
    expect(tab.card("Alloc lab")).to_be_visible()
    for _ in range(4):  # seconds go by
        with page.expect_response(re.compile("/v1/cell")):
            pass
    assert len([path for path in tab.cell.asked if path.startswith("/v1/allocs")]) == 1
    tab.cell.seq += 1
    with page.expect_response(re.compile("/v1/allocs")):
        pass


def test_the_address_of_a_page_works_with_the_token_kept_in_the_tab(tab: Tab) -> None:
    tab.open()
    expect(tab.card("Jobs")).to_be_visible()
    assert TOKEN not in tab.page.url
    tab.page.goto(f"{tab.server.url}#/teams")
    tab.page.reload()
    expect(tab.card("Quota")).to_contain_text("vision")
