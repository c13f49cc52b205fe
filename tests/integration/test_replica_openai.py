"""A replica as OpenAI's own client sees it: a real process, a tiny random model."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tidecell.models.checkpoint import save_model
from tidecell.models.transformer import ModelConfig, Transformer
from tidecell.structs.chat import SPECIAL_TOKENS

MODEL = "toy"
MESSAGES: Any = [{"role": "user", "content": "How high is the tide?"}]


def until(happens: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def make_model(directory: Path) -> Path:
    """Write a random model with a tokenizer of its own."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(["the tide comes and goes, 日本語 und Grüße"] * 3, trainer)
    tokenizer = directory / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text(inner.to_str())
    config = ModelConfig(
        vocab_size=inner.get_vocab_size(), hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=3, max_position_embeddings=256, initializer_range=0.25,
        eos_token_id=0,
    )  # fmt: skip
    return save_model(directory / "model", Transformer(config, seed=11), tokenizer_dir=tokenizer)


class Process:
    """A replica in a process of its own."""

    def __init__(self, model: Path, *arguments: str, **env: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tidecell.inference.replica", "--model", str(model), "--name", MODEL]
        self.popen = subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, "PORT": str(self.port), "OMP_NUM_THREADS": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def health(self) -> int:
        try:
            return self.http.get("/health").status_code
        except httpx.TransportError:
            return 0

    def load(self) -> dict[str, Any]:
        return dict(self.http.get("/load").json())

    def wait_ready(self) -> Process:
        until(lambda: self.health() == 200 or self.popen.poll() is not None)
        assert self.popen.poll() is None, self.popen.stdout.read() if self.popen.stdout else ""
        return self

    def close(self) -> None:
        self.http.close()
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        if self.popen.stdout:
            self.popen.stdout.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def replica(model: Path) -> Iterator[Process]:
    process = Process(model)
    yield process.wait_ready()
    process.close()


@pytest.fixture(scope="module")
def client(replica: Process) -> Iterator[openai.OpenAI]:
    transport = httpx.Client(trust_env=False)
    with openai.OpenAI(
        base_url=f"{replica.url}/v1", api_key="none", max_retries=0, http_client=transport
    ) as made:
        yield made


def complete(client: openai.OpenAI, prompt: Any, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 20, "extra_body": {"ignore_eos": True}, **options}
    return client.completions.create(model=MODEL, prompt=prompt, **options)


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=9, temperature=0)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 1 <= answer.usage.completion_tokens <= 9
    assert answer.id.startswith("chatcmpl-")


def test_a_completion_has_as_many_tokens_as_asked_for(client: openai.OpenAI) -> None:
    answer = complete(client, "the tide", max_tokens=7)
    assert answer.usage.completion_tokens == 7
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI, temperature: float) -> None:
    options: Any = {"temperature": temperature, "seed": 3, "max_tokens": 60, "model": MODEL}
    options |= {"messages": MESSAGES, "extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**options)
    events = list(
        client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )
    assert events[0].choices[0].delta.role == "assistant"
    deltas = [event.choices[0].delta.content or "" for event in events if event.choices]
    assert len([delta for delta in deltas if delta]) > 10
    assert "".join(deltas) == whole.choices[0].message.content
    assert events[-1].choices == []
    assert events[-1].usage == whole.usage
    assert all(event.usage is None for event in events[:-1])
    finishes = [event.choices[0].finish_reason for event in events if event.choices]
    assert [finish for finish in finishes if finish] == [whole.choices[0].finish_reason]


def test_a_raw_stream_ends_with_done_and_has_no_usage_unasked(replica: Process) -> None:
    body = {"model": MODEL, "prompt": "a", "max_tokens": 3, "stream": True}
    answer = replica.http.post("/v1/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream"
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events)


def test_a_seed_repeats_an_answer_and_no_seed_does_not(client: openai.OpenAI) -> None:
    hot: Any = {"temperature": 1.5, "max_tokens": 30}
    first, second = (complete(client, "a", seed=5, **hot).choices[0].text for _ in range(2))
    assert first == second
    assert complete(client, "a", seed=6, **hot).choices[0].text != first
    assert len({complete(client, "a", **hot).choices[0].text for _ in range(4)}) > 1


def test_a_seeded_answer_is_the_same_under_load(client: openai.OpenAI) -> None:
    def ask(number: int) -> str:
        text = complete(client, f"wave {number}", seed=number, temperature=1.2, max_tokens=40)
        return str(text.choices[0].text)

    alone = [ask(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone


def test_a_stop_string_ends_an_answer(client: openai.OpenAI) -> None:
    text = complete(client, "the tide", max_tokens=40).choices[0].text
    stop = text[8:11]
    answer = complete(client, "the tide", max_tokens=40, stop=stop).choices[0]
    assert answer.text == text[: text.index(stop)]
    assert answer.finish_reason == "stop"
    streamed = complete(client, "the tide", max_tokens=40, stop=stop, stream=True)
    assert "".join(event.choices[0].text for event in streamed) == answer.text


def test_n_answers_differ_and_the_first_is_that_of_one(client: openai.OpenAI) -> None:
    hot: Any = {"temperature": 1.3, "seed": 9, "max_tokens": 20}
    answer = complete(client, "the", n=3, **hot)
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts[0] == complete(client, "the", **hot).choices[0].text
    assert answer.usage.completion_tokens == 60
    streams = ["", "", ""]
    for event in complete(client, "the", n=3, stream=True, **hot):
        streams[event.choices[0].index] += event.choices[0].text
    assert streams == texts


def test_several_prompts_are_answered_each(client: openai.OpenAI) -> None:
    prompts = ["the tide", "comes", [10, 20, 30]]
    answer = complete(client, prompts[:2])
    alone = [complete(client, prompt).choices[0].text for prompt in prompts]
    assert [choice.text for choice in answer.choices] == alone[:2]
    assert len(alone[2]) > 0


def test_chat_logprobs_add_up(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=10, temperature=0, logprobs=True, top_logprobs=4,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 10
    for token in logprobs.content:
        assert len(token.top_logprobs) == 4
        assert token.logprob == max(top.logprob for top in token.top_logprobs) <= 0  # greedy
    data = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert data.decode("utf-8", "replace") == answer.choices[0].message.content


def test_completion_logprobs_name_tokens_and_places(client: openai.OpenAI) -> None:
    answer = complete(client, "the tide", max_tokens=12, logprobs=2).choices[0]
    tokens, offsets = answer.logprobs.tokens, answer.logprobs.text_offset
    assert len(tokens) == len(offsets) == len(answer.logprobs.token_logprobs) == 12
    assert offsets == sorted(offsets)
    assert all(1 <= len(top) <= 2 for top in answer.logprobs.top_logprobs)


def test_mistakes_have_openais_shape(client: openai.OpenAI, replica: Process) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt", prompt="a")
    assert unknown.value.body == {
        "message": "the model 'gpt' does not exist here; 'toy' does",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    with pytest.raises(openai.BadRequestError, match="context is 256 tokens; 3 are in the prompt and 300"):
        complete(client, [5, 6, 7], max_tokens=300)
    with pytest.raises(openai.BadRequestError, match="token id 99999 does not exist"):
        complete(client, [99999])
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=tools)
    assert (unsupported.value.param, unsupported.value.code) == ("tools", "unsupported_parameter")
    assert replica.http.post("/v1/completions", content=b"{").json()["error"]["code"] == "invalid_json"
    assert replica.http.get("/v1/completions").status_code == 405
    assert replica.http.get("/v1/nothing").json()["error"]["code"] == "unknown_url"


def test_an_open_answer_may_fill_the_context(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 256
    assert answer.choices[0].finish_reason == "length"


def test_thirty_two_ragged_requests_at_once_get_what_each_gets_alone(client: openai.OpenAI) -> None:
    rng = random.Random(0)
    asked = [
        ([rng.randrange(10, 290) for _ in range(rng.randrange(1, 120))], rng.randrange(1, 60))
        for _ in range(32)
    ]

    def ask(one: tuple[list[int], int]) -> str:
        return str(complete(client, one[0], max_tokens=one[1]).choices[0].text)

    alone = [ask(one) for one in asked]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, asked)) == alone


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_gives_its_blocks_back(replica: Process, stream: bool) -> None:
    body = {"model": MODEL, "prompt": "the tide", "max_tokens": 240, "ignore_eos": True, "stream": stream}
    body |= {"n": 16}  # enough work to be caught in the middle of it
    raw = json.dumps(body).encode()
    tokens = replica.load()["tokens"]
    with socket.create_connection(("127.0.0.1", replica.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(raw), raw)
        )
        until(lambda: replica.load()["running"] == 16)
    until(lambda: replica.load()["ongoing"] == 0)
    load = replica.load()
    assert load["kv_blocks_used"] == 0
    assert load["tokens"] - tokens < 16 * 240


def test_metrics_are_prometheus_text(client: openai.OpenAI, replica: Process) -> None:
    complete(client, "x" * 100)
    complete(client, "x" * 100)
    lines = replica.http.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    label = f'{{model="{MODEL}"}}'
    assert float(values[f"tidecell_prefix_hit_tokens_total{label}"]) > 0
    assert float(values[f"tidecell_generated_tokens_total{label}"]) >= 40
    assert float(values[f"tidecell_kv_blocks_used{label}"]) == 0
    count = f"tidecell_time_to_first_token_seconds_count{label}"
    assert (
        values[count] == values[f'tidecell_time_to_first_token_seconds_bucket{{model="{MODEL}",le="+Inf"}}']
    )


def test_sigterm_finishes_what_is_in_flight_and_exits_with_0(model: Path) -> None:
    process = Process(model).wait_ready()
    try:
        body = {"model": MODEL, "prompt": "the tide", "max_tokens": 200, "ignore_eos": True, "stream": True}
        with process.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.popen.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.popen.wait(timeout=20) == 0
    finally:
        process.close()


def test_what_is_not_finished_within_the_grace_period_is_dropped(model: Path) -> None:
    process = Process(model, "--grace", "0.2").wait_ready()
    try:
        body = {"model": MODEL, "prompt": "a", "max_tokens": 250, "ignore_eos": True, "stream": True, "n": 64}
        with process.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.popen.send_signal(signal.SIGTERM)
            seen: list[str] = []
            try:
                seen.extend(lines)
            except httpx.TransportError:
                pass
        assert "data: [DONE]" not in seen
        assert process.popen.wait(timeout=20) == 0
    finally:
        process.close()


def test_a_notice_drains_and_reports_tell_the_load(model: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "agent")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(20)
        process = Process(model, TIDECELL_SOCKET=path, TIDECELL_UID="chat.1", TIDECELL_INDEX="2")
        try:
            agent, _ = listener.accept()
            with agent, agent.makefile("rw") as line:
                hello = json.loads(line.readline())
                assert (hello["type"], hello["uid"], hello["index"]) == ("hello", "chat.1", 2)
                process.wait_ready()
                body = {"model": MODEL, "prompt": "a", "max_tokens": 5, "n": 4}
                assert process.http.post("/v1/completions", json=body).status_code == 200
                report = json.loads(line.readline())
                assert report["type"] == "report"
                assert report["data"]["kind"] == "serve"
                assert report["data"]["tokens_per_s"] > 0
                line.write(json.dumps({"type": "notice", "action": "stop", "cause": "preempt",
                                       "deadline_s": 5.0, "grace_s": 5.0, "new_size": 1}) + "\n")  # fmt: skip
                line.flush()
                assert process.popen.wait(timeout=10) == 0
        finally:
            process.close()


def test_a_model_that_cannot_be_loaded_ends_the_process_with_the_reason(model: Path) -> None:
    process = Process(model, "--max-context", "1000")
    try:
        out, _ = process.popen.communicate(timeout=60)
        assert process.popen.returncode == 1
        assert "error: a context of 1000 tokens is asked for; the model knows 256 positions" in out
        assert "hint: set --max-context to 256 or less" in out
    finally:
        process.close()


def test_a_replica_stays_small(replica: Process) -> None:
    status = Path(f"/proc/{replica.popen.pid}/status").read_text()
    resident_kb = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert resident_kb < 450_000
