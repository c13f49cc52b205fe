"""Logits to tokens: each row on its own."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
import torch

from tidecell.inference.params import SamplingParams, choice_seed, uniform
from tidecell.inference.sampler import Row, sample

GREEDY = SamplingParams(temperature=0.0)


def one(logits: list[float], params: SamplingParams, prompt: list[int] = [], output: list[int] = []) -> int:  # noqa: B006
    return sample(torch.tensor([logits]), [Row(params, prompt, output)])[0].token


def drawn(logits: list[float], count: int = 400, **options: object) -> Counter[int]:
    """Return how often each token is drawn, over seeds."""
    params = msgspec.convert({"temperature": 1.0, **options}, SamplingParams)
    rows = [Row(msgspec.structs.replace(params, seed=seed), [], []) for seed in range(count)]
    return Counter(choice.token for choice in sample(torch.tensor([logits] * count), rows))


def test_greedy_takes_the_likeliest() -> None:
    assert one([0.0, 3.0, 1.0], GREEDY) == 1
    assert one([0.0, 3.0, 1.0], SamplingParams(top_k=1)) == 1


def test_draws_follow_the_probabilities() -> None:
    counts = drawn([0.0, 1.0986123], count=4000)  # 1 : 3
    assert 0.72 < counts[1] / 4000 < 0.78


def test_temperature_sharpens_and_flattens() -> None:
    assert drawn([0.0, 1.0], temperature=0.05)[1] == 400
    assert drawn([0.0, 1.0], temperature=2.0)[0] > drawn([0.0, 1.0], temperature=0.5)[0]


def test_top_k_keeps_the_k_likeliest() -> None:
    assert set(drawn([1.0, 2.0, 3.0, 0.0], top_k=2)) == {1, 2}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert set(drawn(logits, top_p=0.79)) == {0, 1}
    assert set(drawn(logits, top_p=0.81)) == {0, 1, 2}
    assert set(drawn(logits, top_p=0.01)) == {0}


def test_min_p_keeps_what_is_near_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert set(drawn(logits, min_p=0.5)) == {0, 1}


def test_the_repetition_penalty_counts_prompt_and_output() -> None:
    params = msgspec.structs.replace(GREEDY, repetition_penalty=2.0)
    assert one([3.0, 2.0, -1.0], params) == 0
    assert one([3.0, 2.0, -1.0], params, prompt=[0]) == 1
    assert one([3.0, 2.0, -1.0], params, output=[0]) == 1
    assert one([-1.0, -1.5, -3.0], params, prompt=[0]) == 1  # -1 becomes -2


def test_presence_and_frequency_penalties_count_the_output_alone() -> None:
    presence = msgspec.structs.replace(GREEDY, presence_penalty=1.5)
    assert one([3.0, 2.0], presence, prompt=[0]) == 0
    assert one([3.0, 2.0], presence, output=[0]) == 1
    frequency = msgspec.structs.replace(GREEDY, frequency_penalty=0.6)
    assert one([3.0, 2.0], frequency, output=[0]) == 0
    assert one([3.0, 2.0], frequency, output=[0, 0]) == 1


def test_a_bias_moves_a_token() -> None:
    assert one([3.0, 2.0], msgspec.structs.replace(GREEDY, logit_bias=((1, 5.0),))) == 1


def test_penalties_of_one_row_leave_its_neighbours_and_the_logits_alone() -> None:
    logits = torch.tensor([[3.0, 2.0], [3.0, 2.0]])
    biased = msgspec.structs.replace(GREEDY, logit_bias=((0, -9.0),))
    choices = sample(logits, [Row(biased, [], []), Row(GREEDY, [], [])])
    assert [c.token for c in choices] == [1, 0]
    assert logits.tolist() == [[3.0, 2.0], [3.0, 2.0]]


def test_a_row_is_drawn_the_same_whatever_is_beside_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 500, generator=generator)
    kinds = [
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=1.3, top_k=20),
        SamplingParams(temperature=0.0),
        SamplingParams(min_p=0.1, presence_penalty=1.0),
    ]
    rows = [Row(msgspec.structs.replace(kinds[i % 4], seed=i), [i], [i, i + 1][: i % 3]) for i in range(64)]
    together = sample(logits, rows)
    alone = [sample(logits[i : i + 1], [rows[i]])[0] for i in range(64)]
    assert together == alone
    assert sample(logits.flip(0), rows[::-1]) == together[::-1]


def test_another_seed_or_another_place_gives_other_luck() -> None:
    numbers = {uniform(seed, index) for seed in range(50) for index in range(50)}
    assert len(numbers) == 2500
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert sum(numbers) / 2500 == pytest.approx(0.5, abs=0.02)


def test_the_first_of_several_answers_has_the_requests_own_seed() -> None:
    assert choice_seed(5, 0) == 5
    assert len({choice_seed(5, choice) for choice in range(100)}) == 100


def test_logprobs_are_the_models_own() -> None:
    params = SamplingParams(temperature=0.0, logprobs=2, logit_bias=((0, 100.0),))
    (choice,) = sample(torch.tensor([[0.0, 1.0, 2.0]]), [Row(params, [], [])])
    expected = torch.log_softmax(torch.tensor([0.0, 1.0, 2.0]), dim=0)
    assert choice.token == 0
    assert choice.logprob == pytest.approx(expected[0].item())
    assert [token for token, _ in choice.top] == [2, 1]
    assert choice.top[0][1] == pytest.approx(expected[2].item())
