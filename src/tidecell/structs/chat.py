"""The chat format: one pure function that training and serving share.

A conversation becomes segments of text. Markers are the tokenizer's special tokens; content is not
allowed to forge them, so a tokenizer must encode a ``Marker`` as its special token and everything
else as plain text (with ``tokenizers``: ``encode_special_tokens = True`` while encoding content)::

    <|system|>Be brief.<|endoftext|><|user|>Hi<|endoftext|><|assistant|>Hello!<|endoftext|>

What the assistant says, and the end marker after it, are what a model learns to produce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SYSTEM = "<|system|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|endoftext|>"

ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (END, SYSTEM, USER, ASSISTANT)


class Marker(str):
    """Segment text that stands for one special token, not for the characters it is spelled with."""

    __slots__ = ()


_MARKERS = {"system": Marker(SYSTEM), "user": Marker(USER), "assistant": Marker(ASSISTANT)}
_END = Marker(END)


def render_chat(
    messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False
) -> list[tuple[str, bool]]:
    """Return a conversation as segments of text.

    Args:
        messages: Each with ``role`` (system, user or assistant) and ``content``, oldest first.
        add_generation_prompt: Whether to end with the assistant's marker, so that a model answers next.

    Returns:
        Pairs of text and whether the assistant produces it (the part that counts in a training loss).
        Texts that are ``Marker`` are special tokens. Joined, the texts are the whole rendering.

    Raises:
        ValueError: A role is none of the three.
    """
    segments: list[tuple[str, bool]] = []
    for message in messages:
        role = message["role"]
        if role not in _MARKERS:
            raise ValueError(f"role {role!r} is not one of {', '.join(ROLES)}")
        spoken = role == "assistant"
        segments += [(_MARKERS[role], False), (message["content"], spoken), (_END, spoken)]
    if add_generation_prompt:
        segments.append((_MARKERS["assistant"], False))
    return segments
