"""What a request asks of generation, and what it gets for each token."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How tokens are chosen from logits, and when generation ends.

    Attributes:
        max_tokens: Tokens to generate at most.
        temperature: 0 is greedy.
        top_k: Keep this many of the likeliest tokens; 0 keeps all.
        top_p: Keep the likeliest tokens that together have this probability; 1 keeps all.
        min_p: Keep tokens with at least this share of the likeliest one's probability.
        repetition_penalty: Divides positive and multiplies negative logits of tokens seen in prompt or
            output; 1 does nothing (CTRL, Keskar et al. 2019).
        presence_penalty: Taken from the logits of tokens seen in the output.
        frequency_penalty: Taken from the logits of tokens for each time they are in the output.
        logit_bias: Pairs of token id and what is added to its logit.
        seed: Makes the output repeatable, whatever else runs in the batch.
        stop: Strings that end the output, and are not part of it.
        stop_token_ids: Tokens that end the output, beyond the model's own.
        ignore_eos: Go on after the model's own end tokens.
        logprobs: Report the chosen token's log-probability and those of this many likeliest tokens;
            None reports nothing. They are the model's: before temperature, penalties and bias.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def cuts_tail(self) -> bool:
        """Whether tokens are kept by their rank."""
        return self.top_k > 0 or self.top_p < 1.0

    @property
    def changes_logits(self) -> bool:
        """Whether penalties or a bias are asked for."""
        return bool(
            self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
        )


class Choice(msgspec.Struct, frozen=True):
    """A token that was chosen.

    Attributes:
        token: The token.
        logprob: Its log-probability; None unless asked for.
        top: Pairs of token and log-probability, likeliest first; empty unless asked for.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def uniform(seed: int, index: int) -> float:
    """Return the number in [0, 1) that decides token ``index`` of a request with ``seed``.

    Counting instead of drawing from a generator's state makes a token's luck depend on nothing but its
    place: not on the batch, not on a recomputation after preemption.

    Source: splitmix64, Steele et al., OOPSLA 2014; twice, so that neighbouring seeds share no stream.
    """
    return (_mix(_mix(seed & _MASK) + index) >> 11) * 2.0**-53


def local_params(given: Mapping[str, Any], room: int) -> SamplingParams:
    """Return parameters of a request made in this process, by the API's names.

    Args:
        given: ``max_tokens``, ``temperature``, ``top_p``, ``seed``, ``stop``.
        room: Tokens that are left in the context.
    """
    seed = given.get("seed")
    values = {**given, "max_tokens": min(given.get("max_tokens", room), room)}
    values["seed"] = secrets.randbits(63) if seed is None else seed
    return SamplingParams(**values)


def choice_seed(seed: int, choice: int) -> int:
    """Return the seed of one of several answers to a request; the first has the request's own."""
    return seed if choice == 0 else _mix(_mix(seed & _MASK) ^ choice)


_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    z = (value + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
