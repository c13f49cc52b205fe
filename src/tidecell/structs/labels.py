"""Which jobs a command means, by their labels: ``owner=ana``, ``owner!=ana``, ``owner``, ``!owner``. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tidecell.structs.errors import RefusedError

LABEL_HINT = "write key=value, key!=value, key (it is there) or !key (it is not)"


def is_label(key: str) -> bool:
    """Return whether a label may have this key, so that a test can name it."""
    return bool(key.strip()) and not set(key) & {"=", "!", ","}


class LabelTest(msgspec.Struct, frozen=True):
    """One test of a job's labels; without a value it asks whether the label is there."""

    key: str
    value: str | None = None
    negated: bool = False

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Return whether labels pass the test; a missing label passes negated ones only."""
        there = self.key in labels if self.value is None else labels.get(self.key) == self.value
        return there is not self.negated


def parse_labels(texts: Iterable[str]) -> tuple[LabelTest, ...]:
    """Return the tests that these texts say, all of which must hold.

    Raises:
        RefusedError: One of them says none.
    """
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> LabelTest:
    key, equals, value = text.partition("=")
    if equals:
        negated = key.endswith("!")
        test = LabelTest(key.removesuffix("!").strip(), value.strip(), negated)
    else:
        test = LabelTest(text.strip().removeprefix("!").strip(), None, text.strip().startswith("!"))
    if not test.key or test.key.startswith("!"):
        raise RefusedError(f"label {text!r} names no key", LABEL_HINT)
    return test


def passes(labels: Mapping[str, str], tests: Iterable[LabelTest]) -> bool:
    """Return whether labels pass all tests."""
    return all(test.holds(labels) for test in tests)
