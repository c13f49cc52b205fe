"""The console in a real browser, against a cell that is all answers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from fake_console_cell import TOKEN, FakeCell, FakeServer, serve

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]


@dataclass
class Tab:
    """An open page, the cell it shows, and what went wrong in it."""

    page: Page
    server: FakeServer
    cell: FakeCell
    errors: list[str] = field(default_factory=list)

    def open(self, fragment: str = f"#token={TOKEN}") -> Page:
        self.page.goto(self.server.url + fragment)
        return self.page

    def visit(self, page: str) -> Page:
        """Open a page of the console by its address, as a link would."""
        self.open()
        expect(self.page.get_by_role("main")).to_be_visible()
        self.page.goto(f"{self.server.url}#/{page}")
        return self.page

    def turn_to(self, page: str) -> Page:
        """Go to another page of the open console, and wait until it is there."""
        self.page.goto(f"{self.server.url}#/{page}")
        expect(self.page.locator(f'nav.pages a[href="#/{page}"][aria-current]')).to_be_visible()
        expect(self.page.get_by_role("main")).not_to_contain_text("Asking the cell")
        return self.page

    def card(self, name: str) -> sync_api.Locator:
        return self.page.get_by_role("region", name=name, exact=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def cell() -> FakeCell:
    return FakeCell()


@pytest.fixture
def tab(browser: Browser, cell: FakeCell) -> Iterator[Tab]:
    """A fresh tab with nothing stored; what it logged as an error fails the test unless the test took it."""
    with serve(cell) as server:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        context.set_default_timeout(10_000)
        tab = Tab(context.new_page(), server, cell)
        tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.page.on(
            "console", lambda m: tab.errors.append(m.text) if m.type in ("error", "warning") else None
        )
        yield tab
        context.close()
    assert tab.errors == []


def test_the_page_shows_cell_machines_services_jobs_and_events(tab: Tab) -> None:
    page = tab.open()
    expect(page.get_by_role("banner")).to_contain_text("agent up")
    expect(page.get_by_role("banner")).to_contain_text("router up")
    expect(page.get_by_role("banner")).to_contain_text("2 cores · 4 GiB")
    expect(tab.card("Machines")).to_contain_text("1.8 reserved · 1.46 used · of 2")
    expect(tab.card("Services")).to_contain_text("1,834")
    expect(tab.card("Jobs")).to_contain_text("WaitingForCapacity")
    expect(tab.card("Jobs")).to_contain_text("step 400 of 500 · loss 3.2")
    expect(tab.card("Jobs")).to_contain_text("replica 0 exited with status 3")
    expect(tab.card("Recent events")).to_contain_text("replica 1 PREEMPTED by chat; 1 remain")


def test_a_part_that_is_down_is_said_in_words(tab: Tab) -> None:
    tab.cell.agent_up = False
    expect(tab.open().get_by_role("banner")).to_contain_text("agent down")


def test_the_chart_has_an_area_per_band_and_lines_below(tab: Tab) -> None:
    page = tab.open()
    for band in ("production", "batch", "best-effort"):
        box = page.locator(f"svg path.area.band-{band}").bounding_box()
        assert box is not None
        assert box["height"] > 10
    for panel in ("services", "trainings"):
        lines = page.locator(f"[data-panel={panel}] path.line")
        expect(lines).to_have_count(2)
        assert all(len(line.get_attribute("d") or "") > 200 for line in lines.all())


def test_hovering_shows_the_values_of_that_moment(tab: Tab) -> None:
    page = tab.open()
    expect(page.locator(".when")).to_contain_text("now")
    box = page.locator("#chart svg").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 80)
    expect(page.locator(".when")).to_contain_text("at the cursor")
    expect(page.locator("[data-readout=chat]")).to_contain_text("3 / 3")
    expect(page.locator("svg .cursor")).to_have_count(1)
    page.mouse.move(5, 5)
    expect(page.locator(".when")).to_contain_text("now")


def test_the_cursor_moves_by_keyboard(tab: Tab) -> None:
    page = tab.open()
    slider = page.get_by_role("slider", name="Time cursor of the tide chart")
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"of 2 cores"))
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator(".when")).to_contain_text("at the cursor")
    expect(slider).to_have_attribute("aria-valuenow", "0")
    page.keyboard.press("Escape")
    expect(page.locator(".when")).to_contain_text("now")


def test_a_longer_time_may_be_chosen(tab: Tab) -> None:
    page = tab.open()
    button = page.get_by_role("button", name="10m")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    slider = page.get_by_role("slider")
    expect(slider).to_have_attribute("aria-valuemax", re.compile(r"^[56]\d\d$"))
    assert "/v1/series?since=600&points=620" in tab.cell.asked


def test_after_the_first_time_only_new_samples_are_asked_for(tab: Tab) -> None:
    page = tab.open()
    page.wait_for_selector("svg path.area")
    with page.expect_request(re.compile("/v1/series")) as asked:
        pass
    since_s = int(re.search(r"since=(\d+)", asked.value.url).group(1))  # type: ignore[union-attr]
    assert since_s <= 10


def test_a_job_opens_a_panel_with_tasks_reasons_and_logs(tab: Tab) -> None:
    page = tab.open()
    page.get_by_role("button", name="Details of eval-sweep").click()
    panel = page.get_by_role("complementary", name="Details of eval-sweep")
    expect(panel.get_by_role("heading", name="eval-sweep")).to_be_focused()
    expect(panel).to_contain_text("2 x 0.6 cpu, 1.0 GiB, together")
    expect(panel).to_contain_text("pretrain (batch) 2 tasks on laptop")
    expect(panel.locator(".fixes code").first).to_have_text("tide prio eval-sweep production")
    expect(panel).to_contain_text("shrinks pretrain 2 -> 1")
    expect(panel).to_contain_text("Would not help")
    expect(panel.get_by_role("region", name="Tasks table").get_by_role("row")).to_have_count(3)
    expect(panel.locator("pre")).to_contain_text("<b>step 400</b> loss 3.20")
    page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    expect(page.get_by_role("button", name="Details of eval-sweep")).to_be_focused()


def test_the_panel_opens_by_keyboard_and_keeps_its_focus_while_numbers_change(tab: Tab) -> None:
    page = tab.open()
    page.get_by_role("button", name="Details of pretrain").focus()
    page.keyboard.press("Enter")
    close = page.get_by_role("button", name="Close details")
    close.focus()
    with page.expect_request(re.compile("/v1/jobs/pretrain.1/logs")) as asked_again:
        pass
    assert asked_again.value.response() is not None
    expect(close).to_be_focused()
    page.keyboard.press("Enter")
    expect(close).to_have_count(0)


def test_the_token_leaves_the_address_bar_and_is_kept_for_this_tab_only(tab: Tab) -> None:
    page = tab.open()
    expect(tab.card("Jobs")).to_contain_text("pretrain")
    assert page.url == tab.server.url
    page.reload()
    expect(tab.card("Jobs")).to_contain_text("pretrain")
    assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0


def test_without_a_token_nothing_is_asked_until_one_is_given(tab: Tab) -> None:
    page = tab.open("")
    expect(page.get_by_label("Token")).to_be_focused()
    assert tab.cell.asked == []
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(tab.card("Jobs")).to_contain_text("pretrain")


def test_a_wrong_token_is_refused_in_words_and_forgotten(tab: Tab) -> None:
    page = tab.open("#token=wrong")
    expect(page.get_by_role("alert")).to_contain_text("refused this token")
    assert page.evaluate("sessionStorage.length") == 0
    assert all("401" in error for error in tab.errors)
    tab.errors.clear()


def test_a_silent_control_plane_is_said_and_the_page_comes_back_with_it(tab: Tab) -> None:
    page = tab.open()
    expect(tab.card("Jobs")).to_contain_text("pretrain")
    tab.server.stop()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The control plane does not answer")
    expect(alert).to_contain_text(re.compile(r"Last seen \d+ s ago"))
    expect(alert).to_contain_text("Tasks and the router go on")
    expect(tab.card("Jobs")).to_contain_text("pretrain")
    expect(page.locator(".when")).to_contain_text("when last seen")
    expect(page.get_by_role("banner")).to_contain_text("agent unknown")
    again = FakeServer(tab.cell, tab.server.port)
    try:
        expect(alert).to_have_count(0, timeout=15_000)
    finally:
        page.close()
        again.stop()
    assert all("ERR_" in error for error in tab.errors), tab.errors
    tab.errors.clear()


def test_a_cell_where_nothing_runs_says_what_to_type(tab: Tab) -> None:
    tab.cell.idle = True
    tab.open()
    expect(tab.card("Jobs")).to_contain_text("tide run -- echo hello")
    expect(tab.card("Services")).to_contain_text("tide serve MODEL")
    expect(tab.card("Tide chart")).to_contain_text("No samples yet")


def test_teams_show_quota_use_and_what_is_borrowed(tab: Tab) -> None:
    tab.open()
    card = tab.card("Teams")
    expect(card).to_contain_text("vision")
    expect(card).to_contain_text("1.4 cpu")
    expect(card).to_contain_text("borrows 0.4 cpu")
    expect(card).to_contain_text("2 cpu, 1 GiB")
    expect(card).to_contain_text("none now")


def test_where_no_quota_is_set_there_is_no_table_of_teams(tab: Tab) -> None:
    tab.cell.idle = True
    tab.open()
    expect(tab.card("Jobs")).to_be_visible()
    expect(tab.card("Teams")).to_have_count(0)


def test_a_plan_shows_who_starts_who_gives_way_and_what_waits(tab: Tab) -> None:
    page = tab.visit("plan")
    page.get_by_label("What would happen").fill("name: sweep\nrun: x\n")
    page.get_by_role("button", name="Show the plan").click()
    card = tab.card("Plan")
    expect(card).to_contain_text("Everything starts now. create sweep")
    expect(card.get_by_role("row", name=re.compile("sweep 0 laptop"))).to_be_visible()
    expect(card).to_contain_text("shrinks: 1 replica remains")
    expect(card).to_contain_text("at most 20s of work")
    expect(card).to_contain_text("WaitingForPreempted")
    expect(page.get_by_label("What would happen")).to_have_value("name: sweep\nrun: x\n")


def test_a_plan_of_a_spec_with_mistakes_lists_them(tab: Tab) -> None:
    page = tab.visit("plan")
    page.get_by_label("What would happen").fill("run: x\nnmae: sweep\n")
    page.get_by_role("button", name="Show the plan").click()
    expect(tab.card("Plan")).to_contain_text("line 2: nmae: unknown key")
    tab.errors.clear()  # the browser logs an answer of 422


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (400, 900)])
def test_the_page_fits_the_window(tab: Tab, width: int, height: int) -> None:
    tab.page.set_viewport_size({"width": width, "height": height})
    page = tab.open()
    expect(tab.card("Jobs")).to_contain_text("WaitingForCapacity")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.get_by_text("WaitingForCapacity").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= width
    page.get_by_role("button", name="Details of eval-sweep").click()
    expect(page.get_by_role("complementary")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(tab: Tab, scheme: str) -> None:
    tab.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page = tab.open()
    expect(tab.card("Jobs")).to_contain_text("WaitingForCapacity")
    faint = page.evaluate(CONTRAST)
    assert faint == []


# Text elements whose contrast to what lies behind them is below 4.5 (WCAG 2, level AA).
CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => parse(c).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (el) => {
    for (; el; el = el.parentElement) {
      const color = getComputedStyle(el).backgroundColor;
      if (parse(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  for (const el of document.querySelectorAll("#app *")) {
    const own = [...el.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || el.closest("svg")) continue;
    const [a, b] = [light(getComputedStyle(el).color), light(behind(el))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(`${el.className} ${el.textContent}`);
  }
  return faint;
}"""


def test_long_series_are_thinned_on_a_fixed_grid(tab: Tab) -> None:
    page = tab.open("")
    counts = page.evaluate(
        """async () => {
          const { Series } = await import("/static/api.js");
          const series = new Series(3600);
          const at = (from, to) => Array.from({ length: to - from }, (_, i) => ({ at_s: from + i }));
          series.add(at(0, 4000));
          const first = series.samples.map((s) => s.at_s);
          series.add(at(3998, 4030));
          const second = series.samples.map((s) => s.at_s);
          const moved = second.filter((t) => t < 3990 && !first.includes(t));
          return [first.length, first.at(-1), second.at(-1), moved.length];
        }"""
    )
    assert counts == [601, 3999, 4029, 0]


def test_scales_end_at_round_numbers(tab: Tab) -> None:
    page = tab.open("")
    ticks = page.evaluate(
        """async () => {
          const { ticks } = await import("/static/chart.js");
          return [ticks(2.24, 5), ticks(46, 3), ticks(3, 3, true), ticks(920, 3)];
        }"""
    )
    assert ticks == [[0, 0.5, 1, 1.5, 2], [0, 20, 40], [0, 1, 2, 3], [0, 500]]


def test_a_time_without_samples_is_a_gap_in_the_areas(tab: Tab) -> None:
    page = tab.open("")
    subpaths = page.evaluate(
        """async () => {
          const { tideChart } = await import("/static/chart.js");
          const { h, patch } = await import("/static/dom.js");
          const all = Array.from({ length: 100 }, (_, i) => ({
            at_s: i, capacity_cpu_millis: 2000, reserved_by_band: { batch: 1000 } }));
          const samples = all.filter((s) => s.at_s < 40 || s.at_s > 60);
          const place = document.createElement("div");
          patch(place, [tideChart({ samples, windowS: 120, width: 800, cursor: null })]);
          return place.querySelector("path.area").getAttribute("d").split("M").length - 1;
        }"""
    )
    assert subpaths == 2
