"""Functions into instruction pairs."""

from __future__ import annotations

from collections import Counter

from tidecell.data.document import Document
from tidecell.data.instructions import Pair, Skip, answer_digest, pairs_of
from tidecell.data.pipeline import InstructionParams

SOURCE = '''
class Gauge:
    @property
    def level(self) -> float:
        """Return the level of the water, in metres.

        More that nobody asked for.
        """
        return self._level / 1000


async def fetch(
    url: str,
    timeout_s: float = 3.0,
) -> bytes:
    """Fetch the bytes
    of a page."""
    return await get(url)


def bare(x):
    return x

def stub(x):
    """Do nothing at all, as promised."""

def short(x):
    """Hm."""
    return x
'''


def outcomes(text: str) -> list[Pair | Skip]:
    return list(pairs_of(Document("m.py", text, "s"), InstructionParams()))


def test_a_function_answers_its_signature_and_first_paragraph() -> None:
    level, fetch, *_ = outcomes(SOURCE)
    assert isinstance(level, Pair)
    assert level.function == "Gauge.level"
    assert level.messages[0].role == "user"
    assert level.messages[0].content == (
        "Write this Python function.\n\ndef level(self) -> float\n\nReturn the level of the water, in metres."
    )
    assert level.messages[1].content.startswith('def level(self) -> float:\n    """Return the level')
    assert level.messages[1].content.endswith("\n    return self._level / 1000")
    assert isinstance(fetch, Pair)
    assert "async def fetch( url: str, timeout_s: float = 3.0, ) -> bytes\n\nFetch the bytes of a page." in (
        fetch.messages[0].content
    )


def test_what_gives_no_pair_says_why() -> None:
    skipped = Counter(o.reason for o in outcomes(SOURCE) if isinstance(o, Skip))
    assert skipped == {"NoDocstring": 1, "NothingButDocstring": 1, "DocstringSize": 1}
    body = "\n".join(f"    x += {i}" for i in range(60))
    long = f'def f(x):\n    """Add many numbers to x."""\n{body}\n    return x\n'
    assert outcomes(long) == [Skip("FunctionSize")]


def test_source_that_does_not_parse_is_skipped_not_fatal() -> None:
    for text in ("def f(:\n", "x = '\\d' if 1 else (", "(" * 5000, "a" + ".b" * 20_000, "print 'two'"):
        assert set(outcomes(text)) <= {Skip("UnparsableDocument")}


def test_equal_answers_are_recognised_whatever_their_spacing() -> None:
    one = next(o for o in outcomes(SOURCE) if isinstance(o, Pair))
    other = next(o for o in outcomes(SOURCE.replace("    ", "  ")) if isinstance(o, Pair))
    assert answer_digest(one) == answer_digest(other)
