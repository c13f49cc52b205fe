"""Instruction pairs from Python source: a function's signature and docstring ask, its source answers. Pure.

The pairs come from the very documents that a model is trained on, so they teach it a form (being asked, and
stopping) rather than new facts. Methods count as functions; what is nested in a function does not.
"""

from __future__ import annotations

import ast
import hashlib
import textwrap
import warnings
from collections.abc import Iterator

import msgspec

from tidecell.data.document import Document
from tidecell.data.pipeline import InstructionParams

ASK = "Write this Python function."


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str


class Pair(msgspec.Struct, frozen=True):
    """A conversation of a question and its answer, as a line of ``sft.*.jsonl``.

    Attributes:
        messages: The user's question and the assistant's answer.
        document_id: The document that holds the function.
        function: Its name, with its class where it is a method.
    """

    messages: tuple[Message, ...]
    document_id: str
    function: str


class Skip(msgspec.Struct, frozen=True):
    """A function, or a whole document, of which no pair was made, with a stable reason."""

    reason: str


def pairs_of(document: Document, params: InstructionParams) -> Iterator[Pair | Skip]:
    """Yield a pair, or why there is none, for each function of a Python document."""
    try:
        with warnings.catch_warnings():
            # Invalid escapes in other people's strings are no business of ours.
            warnings.simplefilter("ignore")
            tree = ast.parse(document.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield Skip("UnparsableDocument")
        return
    lines = document.text.split("\n")
    for name, node in _functions(tree, ""):
        yield _pair(document.id, name, node, lines, params)


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Function]]:
    """Yield functions and methods with their qualified names, in the order of the text."""
    for child in getattr(node, "body", []):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")


def _pair(
    document_id: str, name: str, node: _Function, lines: list[str], params: InstructionParams
) -> Pair | Skip:
    docstring = ast.get_docstring(node)
    if docstring is None:
        return Skip("NoDocstring")
    asked = " ".join(docstring.split("\n\n")[0].split())
    if not params.min_doc_chars <= len(asked) <= params.max_doc_chars:
        return Skip("DocstringSize")
    if len(node.body) < 2:
        return Skip("NothingButDocstring")
    end = node.end_lineno or node.lineno
    if not params.min_lines <= end - node.lineno + 1 <= params.max_lines:
        return Skip("FunctionSize")
    source = textwrap.dedent("\n".join(lines[node.lineno - 1 : end]))
    if len(source) > params.max_chars:
        return Skip("FunctionSize")
    question = f"{ASK}\n\n{_signature(node, lines)}\n\n{asked}"
    return Pair((Message("user", question), Message("assistant", source)), document_id, name)


def _signature(node: _Function, lines: list[str]) -> str:
    """Return the lines of a ``def`` up to its colon, in one line."""
    # The docstring is the first statement; a def on its line has no room for more than it.
    last = max(node.lineno, node.body[0].lineno - 1)
    return " ".join(" ".join(lines[node.lineno - 1 : last]).split()).rstrip(":")


def answer_digest(pair: Pair) -> bytes:
    """Return 16 bytes that are equal for pairs with the same answer, indentation and spacing aside."""
    normal = " ".join(pair.messages[-1].content.split())
    return hashlib.blake2b(normal.encode("utf-8", "replace"), digest_size=16).digest()
