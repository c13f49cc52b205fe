"""Rates, quantiles and the access log."""

from __future__ import annotations

import json
from pathlib import Path

from tidecell.traffic.access_log import AccessLog, Line
from tidecell.traffic.meters import Rate, Samples, ServiceMeter
from tidecell.traffic.metrics import render
from tidecell.traffic.policy import End
from tidecell.traffic.stats import EndpointStats, Quantiles, RouterStats, ServiceStats


def test_a_steady_rate_is_measured_over_both_windows() -> None:
    rate = Rate()
    for tick in range(2000):
        rate.add(tick * 0.01)
    assert rate.per_second(20.0, 1.0) == 100.0
    assert rate.per_second(20.0, 10.0) == 100.0


def test_a_rate_falls_to_nothing_once_events_stop() -> None:
    rate = Rate()
    for tick in range(100):
        rate.add(tick * 0.01)
    assert rate.per_second(1.0, 1.0) == 100.0
    assert rate.per_second(3.0, 1.0) == 0.0
    assert rate.per_second(3.0, 10.0) == 10.0
    assert rate.per_second(1000.0, 10.0) == 0.0


def test_quantiles_are_of_the_last_ten_seconds() -> None:
    samples = Samples()
    samples.add(0.0, 9999.0)
    for value in range(1, 101):
        samples.add(5.0, float(value))
    assert samples.quantiles(11.0) == Quantiles(51.0, 96.0, 100.0, 100)
    assert samples.quantiles(16.0) == Quantiles()


def test_only_complete_answers_count_for_latency() -> None:
    meter = ServiceMeter()
    meter.finished(End("ok", 200, 3, 4, 1, 5.0, 10.0), 0, 1.0)
    meter.finished(End("timeout", 504, None, None, 0, None, 60_000.0), 2, 1.0)
    assert (meter.ok_total, meter.failed_total) == (1, {"timeout": 1})
    assert meter.duration_ms.quantiles(1.0).p99 == 10.0
    assert (meter.tokens_in_total, meter.tokens_out_total, meter.retries_total) == (3, 4, 2)


def line(number: int) -> Line:
    return Line(
        time=1.0,
        id=f"req-{number:04}",
        service="chat",
        model="m",
        endpoint="a",
        method="POST",
        path="/v1/x",
        status=200,
        stream=False,
        ttft_ms=1.0,
        duration_ms=2.0,
        queue_ms=0.0,
        bytes_in=1,
        bytes_out=2,
        tokens_in=None,
        tokens_out=None,
        retries=0,
        outcome="ok",
    )


def test_the_access_log_rotates_by_size_and_keeps_every_line_it_may(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.jsonl", max_bytes=2000, num_kept=2)
    for batch in range(8):
        for number in range(5):
            log._lines.append(line(batch * 5 + number))
        log.flush()
    log.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["access.jsonl", "access.jsonl.1", "access.jsonl.2"]
    order = ["access.jsonl.2", "access.jsonl.1", "access.jsonl"]
    ids = [json.loads(row)["id"] for name in order for row in (tmp_path / name).read_text().splitlines()]
    assert ids == sorted(ids)
    assert ids[-1] == "req-0039"
    assert all((tmp_path / name).stat().st_size <= 2000 for name in names)


def test_a_log_that_cannot_be_written_counts_what_it_lost(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "missing" / "access.jsonl")
    log._lines.append(line(0))
    log.flush()
    assert log.num_lost == 1


def test_metrics_name_each_service_outcome_and_endpoint() -> None:
    service = ServiceStats(
        ok_total=3, failed_total={"timeout": 1}, endpoints={'a"b': EndpointStats(in_flight=2)}
    )
    text = render(RouterStats(version=7, refused_total={"not_found": 5}, services={"chat": service}))
    assert "tidecell_router_table_version 7\n" in text
    assert 'tidecell_router_requests_total{service="chat",outcome="ok"} 3\n' in text
    assert 'tidecell_router_requests_total{service="chat",outcome="timeout"} 1\n' in text
    assert 'tidecell_router_requests_total{service="",outcome="not_found"} 5\n' in text
    assert 'tidecell_router_endpoint_in_flight{service="chat",endpoint="a\\"b"} 2\n' in text
