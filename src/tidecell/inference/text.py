"""Token ids to text and back, one token at a time.

A token of a byte-level BPE is some bytes, not some characters: one character may take several tokens.
So a stream is decoded as bytes, and text comes out once its characters are complete; what came out,
joined, is exactly the decoded whole.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tidecell.structs.chat import Marker, render_chat
from tidecell.structs.errors import DataError


class TextCodec:
    """A model's tokenizer, as serving needs it.

    Attributes:
        vocab_size: Number of token ids.
        special_ids: Tokens that are no text.
    """

    def __init__(self, inner: Tokenizer) -> None:
        # Text that merely spells a special token is text: nobody can forge the end of a message.
        inner.encode_special_tokens = True
        self._inner = inner
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        added = inner.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._bytes = _token_bytes(inner)

    @classmethod
    def load(cls, directory: Path) -> TextCodec:
        """Read ``tokenizer.json`` of a model directory.

        Raises:
            DataError: It is missing, damaged, or not of the byte-level kind.
        """
        path = directory / "tokenizer.json"
        try:
            return cls(Tokenizer.from_str(path.read_text("utf-8")))
        except OSError as error:
            raise DataError(
                f"the model has no tokenizer at {path}: {error.strerror}",
                "copy the one it was trained with there",
            ) from error
        except DataError:
            raise
        except Exception as error:  # the library raises bare Exception for damaged files
            raise DataError(f"{path} is damaged: {error}", "copy it again") from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the ids of a conversation that asks the assistant for an answer.

        Raises:
            DataError: The tokenizer lacks a token of the chat format.
        """
        ids: list[int] = []
        for text, _spoken in render_chat(messages, add_generation_prompt=True):
            ids += [self.special_id(text)] if isinstance(text, Marker) else self.encode(text)
        return ids

    def special_id(self, token: str) -> int:
        """Return the id of a special token.

        Raises:
            DataError: There is none.
        """
        found = self._inner.token_to_id(token)
        if found is None:
            raise DataError(f"the tokenizer has no {token}", "chat needs it; ask for a completion instead")
        return int(found)

    def token_bytes(self, token: int) -> bytes:
        """Return what a token stands for; nothing for special tokens and ids without a token."""
        return self._bytes[token] if token < len(self._bytes) else b""

    def token_text(self, token: int) -> str:
        """Return a token as people read it: special tokens by name, broken characters as U+FFFD."""
        if token in self.special_ids:
            return str(self._inner.id_to_token(token))
        return self.token_bytes(token).decode("utf-8", "replace")

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out; broken characters show as U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


class TextStream:
    """Text of one answer as its tokens arrive, up to the first stop string.

    Text that may be the beginning of a stop string is held back until it is known not to be.

    Attributes:
        stopped: Whether a stop string was met; it and what follows never come out.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, data: bytes) -> str:
        """Take a token's bytes and return the text that is settled now."""
        return self._settle(self._decoder.decode(data))

    def finish(self) -> str:
        """Return what was held back, broken last character included."""
        text = self._settle(self._decoder.decode(b"", final=True))
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _settle(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a beginning of ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def _token_bytes(inner: Tokenizer) -> list[bytes]:
    """Return the bytes of every token, by id."""
    decoder: dict[str, Any] = json.loads(inner.to_str()).get("decoder") or {}
    kinds = [decoder.get("type"), *(d.get("type") for d in decoder.get("decoders", []))]
    if "ByteLevel" not in kinds:
        raise DataError(
            f"the tokenizer's decoder is {decoder.get('type')!r}; ByteLevel is supported",
            "use a byte-level BPE (that of GPT-2, Llama 3, Qwen or `tide data prepare`)",
        )
    byte_of = _byte_of_symbol()
    added = inner.get_added_tokens_decoder()
    table = [b""] * inner.get_vocab_size(with_added_tokens=True)
    for token, index in inner.get_vocab(with_added_tokens=True).items():
        if index in added:
            known = added[index]
            table[index] = b"" if known.special else known.content.encode()
        else:
            table[index] = bytes(byte_of[symbol] for symbol in token)
    return table


def _byte_of_symbol() -> dict[str, int]:
    """Return the map from a printable stand-in to its byte.

    Source: GPT-2 (Radford et al., 2019) writes bytes that are printable Latin-1 as themselves and
    the others, in order, as the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(b): b for b in printable}, **{chr(0x100 + i): b for i, b in enumerate(others)}}
