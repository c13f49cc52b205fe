"""OpenAI's requests: what is taken, what is refused and how."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tidecell.inference.protocol import ApiError, Ask, parse_chat, parse_completion

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> Ask:
    return parse_chat(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def completion(**fields: Any) -> Ask:
    return parse_completion(json.dumps({"model": "m", "prompt": "p", **fields}).encode())


def test_defaults_are_openais() -> None:
    ask = chat()
    assert (ask.params.temperature, ask.params.top_p, ask.num_choices, ask.stream) == (1.0, 1.0, 1, False)
    assert ask.params.max_tokens == 0
    assert completion().params.max_tokens == 16


def test_everything_supported_arrives() -> None:
    ask = chat(
        max_completion_tokens=5, temperature=0.5, top_p=0.9, seed=7, stop=["a", "b"], n=2, stream=True,
        stream_options={"include_usage": True}, presence_penalty=0.1, frequency_penalty=0.2,
        logprobs=True, top_logprobs=3, logit_bias={"5": -1.5}, top_k=4, min_p=0.1,
    )  # fmt: skip
    assert ask.params.stop == ("a", "b")
    assert ask.params.logprobs == 3
    assert ask.params.logit_bias == ((5, -1.5),)
    assert (ask.params.max_tokens, ask.params.seed, ask.params.top_k) == (5, 7, 4)
    assert ask.seeded
    assert ask.include_usage


def test_null_means_not_given_and_labels_are_taken() -> None:
    ask = chat(temperature=None, stop=None, seed=None, user="me", metadata={"a": "b"}, tools=None)
    assert not ask.seeded


def test_values_that_ask_for_what_we_do_anyway_are_taken() -> None:
    chat(response_format={"type": "text"}, tools=[], tool_choice="none", store=False, service_tier="auto")
    completion(echo=False, best_of=1, suffix="")


def test_parts_of_text_are_joined_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask = chat(messages=[{"role": "developer", "content": "s"}, {"role": "user", "content": parts}])
    assert ask.messages == ({"role": "system", "content": "s"}, {"role": "user", "content": "ab"})


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))],
)
def test_prompts_come_in_four_kinds(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).prompts == expected


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        ({"max_tokens": "x"}, "max_tokens", "invalid_value", "max_tokens: Expected `int | null`, got `str`"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "max_tokens: Expected `int` >= 1"),
        ({"temperature": 3}, "temperature", "invalid_value", "temperature: Expected `float` <= 2.0"),
        ({"n": 0}, "n", "invalid_value", "n: Expected `int` >= 1"),
        ({"model": None}, "model", "invalid_value", "model: Object missing required field `model`"),
        ({"messages": []}, "messages", "invalid_value", "messages: Expected `array` of length >= 1"),
        ({"stop": [""]}, "stop", "invalid_value", "stop must not be an empty string"),
        ({"top_logprobs": 2}, "top_logprobs", None, "top_logprobs needs logprobs to be true"),
        ({"stream_options": {}}, "stream_options", None, "stream_options needs stream to be true"),
        ({"frobnicate": 1}, "frobnicate", "unknown_parameter", "unknown parameter 'frobnicate'"),
        (
            {"tools": [{"type": "function"}]},
            "tools",
            "unsupported_parameter",
            'parameter \'tools\' is not supported here (got [{"type":"function"}]); leave it out, or give []',
        ),
        (
            {"reasoning_effort": "high"},
            "reasoning_effort",
            "unsupported_parameter",
            "parameter 'reasoning_effort' is not supported here (got \"high\"); leave it out",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages[0].role",
            "invalid_value",
            "messages[0].role is 'tool'; system, developer, user and assistant are supported",
        ),
        (
            {"messages": [{"role": "user"}]},
            "messages[0].content",
            "invalid_value",
            "messages[0].content is null, not a string",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "unsupported_content",
            "messages[0].content has a part that is not text; this model reads text alone",
        ),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value", "logit_bias must map token ids to numbers"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], param: str, code: str | None, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.message, caught.value.param, caught.value.code) == (message, param, code)
    assert caught.value.body()["error"] == {
        "message": message,
        "type": "invalid_request_error",
        "param": param,
        "code": code,
    }


@pytest.mark.parametrize("prompt", [[], [1, "a"], [[]], [True], [-1], {"a": 1}])
def test_a_prompt_of_no_kind_is_refused(prompt: Any) -> None:
    with pytest.raises(ApiError) as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff"])
def test_a_body_that_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(raw)
    assert caught.value.code == "invalid_json"
