"""A byte-level BPE: trained here, stored as Hugging Face files, encoded in batches.

Special tokens have the lowest ids and are the words of the chat template. A conversation is

    <|system|>...<|endoftext|><|user|>...<|endoftext|><|assistant|>...<|endoftext|>

and ``<|assistant|>`` alone asks for an answer. ``<|endoftext|>`` ends documents and messages alike, so it is
the stop token. Text that merely spells a special token is encoded as ordinary text: a document or a user
cannot forge the end of a message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tidecell.data.pipeline import DEFAULT_VOCAB_SIZE
from tidecell.data.shards import replacing
from tidecell.structs.errors import DataError

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
ROLES = ("system", "user", "assistant")
ROLE_TOKENS = {role: f"<|{role}|>" for role in ROLES}
SPECIAL_TOKENS = (END_OF_TEXT, *ROLE_TOKENS.values(), PAD)

MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
MAX_VOCAB_SIZE = 1 << 20

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|endoftext|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Message = Mapping[str, str]


class TextTokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size: Number of token ids; all ids lie below it.
        end_of_text_id: Ends documents and messages.
        pad_id: Fills rows; never a target.
        role_ids: Id of the token that opens a message of each role.
    """

    def __init__(self, inner: Tokenizer) -> None:
        # Special tokens are placed by code alone, never recognised in text.
        inner.encode_special_tokens = True
        self._inner = inner
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self.end_of_text_id = self._special_id(END_OF_TEXT)
        self.pad_id = self._special_id(PAD)
        self.role_ids = {role: self._special_id(token) for role, token in ROLE_TOKENS.items()}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = DEFAULT_VOCAB_SIZE) -> TextTokenizer:
        """Learn merges from texts. The result depends on the texts alone, not on threads.

        Raises:
            DataError: ``vocab_size`` cannot hold every byte and the special tokens, or is absurd.
        """
        check_vocab_size(vocab_size)
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def load(cls, directory: Path) -> TextTokenizer:
        """Read ``tokenizer.json`` of a directory.

        Raises:
            DataError: It is missing, damaged, or lacks a special token.
        """
        path = directory / "tokenizer.json"
        try:
            return cls(Tokenizer.from_str(path.read_text("utf-8")))
        except OSError as error:
            raise DataError(
                f"no tokenizer at {path}: {error.strerror}", "prepare the dataset again"
            ) from error
        except DataError:
            raise
        except Exception as error:  # the library raises bare Exception for damaged files
            raise DataError(f"{path} is damaged: {error}", "prepare the dataset again") from error

    def save(self, directory: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, which transformers reads as well."""
        with replacing(directory / "tokenizer.json") as file:
            file.write(self._inner.to_str(pretty=False).encode() + b"\n")
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TEXT,
            "pad_token": PAD,
            "additional_special_tokens": list(ROLE_TOKENS.values()),
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        with replacing(directory / "tokenizer_config.json") as file:
            file.write(json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens spelled in it stay ordinary text."""
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, on all cores."""
        encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int] | npt.NDArray[Any], *, skip_special: bool = True) -> str:
        """Return the text of ids; a broken UTF-8 sequence shows as U+FFFD."""
        text: str = self._inner.decode([int(i) for i in ids], skip_special_tokens=skip_special)
        return text

    def encode_chat(
        self, messages: Sequence[Message], *, ask: bool = False
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Apply the chat template.

        Args:
            messages: Objects with ``role`` (system, user or assistant) and ``content``.
            ask: Whether to open an answer at the end.

        Returns:
            Token ids, and for each whether an assistant says it: its content and the end-of-text after it.

        Raises:
            DataError: A role is unknown or a content is no text.
        """
        ids: list[int] = []
        spoken: list[bool] = []
        for message in messages:
            role, content = message.get("role", ""), message.get("content")
            if role not in self.role_ids or not isinstance(content, str):
                raise DataError(
                    f"a message has role {role!r} and content of type {type(content).__name__}",
                    f"roles are {', '.join(ROLES)}, and content is a string",
                )
            body = [*self.encode(content), self.end_of_text_id]
            ids += [self.role_ids[role], *body]
            spoken += [False, *([role == "assistant"] * len(body))]
        if ask:
            ids.append(self.role_ids["assistant"])
            spoken.append(False)
        return np.array(ids, dtype=np.int64), np.array(spoken, dtype=np.bool_)

    def encode_chats(
        self, chats: Sequence[Sequence[Message]]
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        """Apply the chat template to many conversations, see ``encode_chat``."""
        return [self.encode_chat(chat) for chat in chats]

    def _special_id(self, token: str) -> int:
        found = self._inner.token_to_id(token)
        if found is None:
            raise DataError(
                f"the tokenizer has no {token}", "use a tokenizer that `tide data prepare` has trained"
            )
        return int(found)


def check_vocab_size(vocab_size: int) -> None:
    """Refuse a vocabulary that cannot hold every byte and the special tokens.

    Raises:
        DataError: ``vocab_size`` lies outside what is allowed.
    """
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise DataError(
            f"a vocabulary of {vocab_size} is impossible; {MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE} are allowed",
            f"{len(SPECIAL_TOKENS)} special tokens and all bytes must fit; {DEFAULT_VOCAB_SIZE} is usual",
        )
