"""The proxies that ``router_overhead`` compares: how each is started in front of the same replicas.

nginx and HAProxy come from the system's packages. ``sglang-router``, ``vllm-router``, LiteLLM and Envoy are
looked for in ``TIDECELL_PEERS``, directories with their programs, ``:`` between them. Every one runs with a
single worker and without an access log, but for ``envoy_policies``.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tidecell.traffic.control import RouterControl
from tidecell.traffic.table import Endpoint, Route, Table, hash_token

TOKEN = "sk-benchmark-token-0123456789abcdef"
Started = tuple[int, list[int]]
Peer = Callable[[Path, list[int]], AbstractContextManager[Started]]

NGINX_CONF = """
user root; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s; {more}
  upstream replicas {{ least_conn; {servers} keepalive 1024; }}
  server {{ listen 127.0.0.1:{port}; keepalive_requests 1000000; location / {{
    proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection "";
    proxy_buffering off; }} }}
}}
"""
HAPROXY_CONF = """
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  option http-no-delay
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend front
  bind 127.0.0.1:{port}
  default_backend replicas
backend replicas
  balance leastconn
  http-reuse always
{servers}
"""
LITELLM_CONF = """
model_list:
{models}
litellm_settings: {{telemetry: false}}
general_settings: {{master_key: {token}}}
"""
ENVOY_FILTERS = "type.googleapis.com/envoy.extensions.filters"
ENVOY_CONF = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {ext}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: "/"}}, route: {{cluster: replicas, timeout: 0s}}}}]
{log}
          http_filters:
{filters}
          - name: envoy.filters.http.router
            typed_config: {{"@type": {ext}.http.router.v3.Router}}
  clusters:
  - name: replicas
    lb_policy: LEAST_REQUEST
{cluster}
    load_assignment:
      cluster_name: replicas
      endpoints:
      - lb_endpoints:
{servers}
"""

# What our router does as well: a token, the model of the body, limits, overload, a log. The limits are so
# wide that none of them refuses anything.
ENVOY_LOG = """
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {dir}/access.jsonl
              log_format: {{json_format: {{time: "%START_TIME%", id: "%REQ(X-REQUEST-ID)%",
                endpoint: "%UPSTREAM_HOST%", method: "%REQ(:METHOD)%", path: "%REQ(:PATH)%",
                status: "%RESPONSE_CODE%", duration_ms: "%DURATION%", bytes_in: "%BYTES_RECEIVED%",
                model: "%DYNAMIC_METADATA(envoy.lb:model)%", bytes_out: "%BYTES_SENT%"}}}}
"""
ENVOY_POLICIES = """
          - name: envoy.filters.http.rbac
            typed_config:
              "@type": {ext}.http.rbac.v3.RBAC
              rules: {{action: ALLOW, policies: {{token: {{permissions: [{{any: true}}], principals: [
                {{header: {{name: authorization, string_match: {{exact: "Bearer {token}"}}}}}}]}}}}}}
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": {ext}.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: limit
              token_bucket: {{max_tokens: 1000000, tokens_per_fill: 1000000, fill_interval: 1s}}
              filter_enabled: {{default_value: {{numerator: 100, denominator: HUNDRED}}}}
              filter_enforced: {{default_value: {{numerator: 100, denominator: HUNDRED}}}}
          - name: envoy.filters.http.admission_control
            typed_config:
              "@type": {ext}.http.admission_control.v3.AdmissionControl
              success_criteria: {{http_criteria: {{http_success_status: [{{start: 100, end: 500}}]}}}}
          - name: envoy.filters.http.adaptive_concurrency
            typed_config:
              "@type": {ext}.http.adaptive_concurrency.v3.AdaptiveConcurrency
              gradient_controller_config:
                concurrency_limit_params: {{concurrency_update_interval: 0.1s}}
                min_rtt_calc_params: {{interval: 60s, request_count: 50, min_concurrency: 1000}}
          - name: envoy.filters.http.json_to_metadata
            typed_config:
              "@type": {ext}.http.json_to_metadata.v3.JsonToMetadata
              request_rules:
                rules:
                - selectors: [{{key: model}}]
                  on_present: {{metadata_namespace: envoy.lb, key: model}}
                  on_missing: {{metadata_namespace: envoy.lb, key: model, value: none}}
"""
ENVOY_CLUSTER = """
    outlier_detection: {consecutive_5xx: 5, base_ejection_time: 5s}
    lb_subset_config: {fallback_policy: NO_FALLBACK, subset_selectors: [{keys: [model]}]}
"""


class NotInstalled(Exception):
    """The program is not on this machine."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int, within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port}")


def program(name: str) -> str:
    """Return the path of a program.

    Raises:
        NotInstalled: There is none.
    """
    path = shutil.which(name, path=os.environ.get("TIDECELL_PEERS", "") + ":" + os.environ["PATH"])
    path = path or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        raise NotInstalled(f"{name} is not installed")
    return path


@contextmanager
def running(argv: list[str], port: int, within_s: float = 20.0) -> Iterator[Started]:
    """Start a proxy; yield its port and the processes whose CPU is its own."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, within_s)
        yield port, [process.pid, *_children(process.pid)]
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *_children(child)]
    return found


@contextmanager
def direct(_home: Path, replicas: list[int]) -> Iterator[Started]:
    """No proxy."""
    yield replicas[0], []


@contextmanager
def router(home: Path, replicas: list[int]) -> Iterator[Started]:
    """Ours: a token is asked for, the access log is written."""
    port, control = free_port(), home / "c.sock"
    argv = [sys.executable, "-m", "tidecell.traffic.router", "--home", str(home), "--port", str(port)]
    with running([*argv, "--control", str(control)], port) as started:
        endpoints = tuple(Endpoint(f"r{n}", "127.0.0.1", replica) for n, replica in enumerate(replicas))
        table = Table(1, 1, (Route("chat", ("m",), endpoints),), (hash_token(TOKEN),))
        asyncio.run(_push(control, table))
        yield started


async def _push(control: Path, table: Table) -> None:
    async with RouterControl(control) as client:
        await client.put_table(table)


@contextmanager
def nginx(home: Path, replicas: list[int], more: str = "") -> Iterator[Started]:
    """With its defaults, but for buffering of answers, which streams cannot have."""
    port, conf = free_port(), home / "nginx.conf"
    servers = "".join(f"server 127.0.0.1:{replica};" for replica in replicas)
    conf.write_text(NGINX_CONF.format(dir=home, servers=servers, port=port, more=more))
    with running([program("nginx"), "-c", str(conf), "-g", "daemon off;"], port) as started:
        yield started


def nginx_buffers(home: Path, replicas: list[int]) -> AbstractContextManager[Started]:
    """With a buffer that large prompts fit in; its default writes them to a file."""
    return nginx(home, replicas, "client_body_buffer_size 1m;")


@contextmanager
def haproxy(home: Path, replicas: list[int]) -> Iterator[Started]:
    port, conf = free_port(), home / "haproxy.cfg"
    servers = "".join(f"  server r{replica} 127.0.0.1:{replica}\n" for replica in replicas)
    conf.write_text(HAPROXY_CONF.format(servers=servers, port=port))
    with running([program("haproxy"), "-db", "-f", str(conf)], port) as started:
        yield started


@contextmanager
def envoy(home: Path, replicas: list[int], has_policies: bool = False) -> Iterator[Started]:
    """The router filter only."""
    port, conf = free_port(), home / "envoy.yaml"
    line = "        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}\n"
    log = filters = cluster = ""
    if has_policies:
        line += "          metadata: {{filter_metadata: {{envoy.lb: {{model: m}}}}}}\n"
        log, cluster = ENVOY_LOG.format(dir=home), ENVOY_CLUSTER
        filters = ENVOY_POLICIES.format(ext=ENVOY_FILTERS, token=TOKEN)
    servers = "".join(line.format(replica) for replica in replicas)
    parts = {"servers": servers, "log": log, "filters": filters, "cluster": cluster}
    conf.write_text(ENVOY_CONF.format(port=port, ext=ENVOY_FILTERS, **parts))
    argv = [program("envoy"), "-c", str(conf), "--concurrency", "1", "--use-dynamic-base-id"]
    with running([*argv, "--disable-hot-restart", "-l", "off"], port) as started:
        yield started


def envoy_policies(home: Path, replicas: list[int]) -> AbstractContextManager[Started]:
    """With what our router does as well: token, model from the body, limits, admission, outliers, a log."""
    return envoy(home, replicas, True)


@contextmanager
def sglang_router(home: Path, replicas: list[int]) -> Iterator[Started]:
    """Power of two choices."""
    port = free_port()
    argv = [program("sglang-router"), "launch", "--host", "127.0.0.1", "--port", str(port)]
    with running([*argv, *_workers(replicas), "--prometheus-port", str(free_port())], port) as started:
        yield started


@contextmanager
def vllm_router(home: Path, replicas: list[int]) -> Iterator[Started]:
    """Power of two choices."""
    port = free_port()
    argv = [program("vllm-router"), "--host", "127.0.0.1", "--port", str(port)]
    with running([*argv, *_workers(replicas), "--prometheus-port", str(free_port())], port) as started:
        yield started


def _workers(replicas: list[int]) -> list[str]:
    urls = [f"http://127.0.0.1:{replica}" for replica in replicas]
    return ["--worker-urls", *urls, "--policy", "power_of_two", "--log-level", "error"]


@contextmanager
def litellm(home: Path, replicas: list[int]) -> Iterator[Started]:
    port, conf = free_port(), home / "litellm.yaml"
    model = "- {{model_name: m, litellm_params: {{model: openai/m, api_base: {}, api_key: none}}}}\n"
    urls = [json.dumps(f"http://127.0.0.1:{replica}/v1") for replica in replicas]
    conf.write_text(LITELLM_CONF.format(models="".join(model.format(url) for url in urls), token=TOKEN))
    argv = [program("litellm"), "--config", str(conf), "--host", "127.0.0.1", "--port", str(port)]
    with running([*argv, "--num_workers", "1"], port, within_s=90.0) as started:
        yield started


PEERS: dict[str, Peer] = {
    "direct": direct,
    "nginx": nginx,
    "nginx_buffers": nginx_buffers,
    "haproxy": haproxy,
    "envoy": envoy,
    "envoy_policies": envoy_policies,
    "sglang_router": sglang_router,
    "vllm_router": vllm_router,
    "litellm": litellm,
    "router": router,
}
