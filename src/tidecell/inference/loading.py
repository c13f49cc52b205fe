"""A model directory becomes a running engine. The only door from a replica to torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch

from tidecell.inference.batcher import Batcher, Chunk
from tidecell.inference.engine import Engine
from tidecell.inference.kv_cache import KVCache
from tidecell.inference.outputs import Deliver, deliver_directly
from tidecell.inference.runner import Runner, load_runner
from tidecell.inference.text import TextCodec
from tidecell.structs.chat import SPECIAL_TOKENS
from tidecell.structs.errors import CheckpointError, DataError

_PREFILL_BUDGET = 256  # tokens; about what a small CPU computes while readers do not notice


class Options(msgspec.Struct, frozen=True):
    """How an engine is set up.

    Attributes:
        max_batch: Requests in one forward pass at most.
        max_context: Tokens of prompt and answer together at most; 0: what the model knows.
        threads: Threads of one forward pass on the CPU.
        device: ``cpu``, ``cuda`` or empty: CUDA where there is a device.
        pool_bytes: Upper bound of the KV pool; one request of the full context always fits.
    """

    max_batch: int = 32
    max_context: int = 0
    threads: int = 1
    device: str = ""
    pool_bytes: int = 128 << 20


class Loaded(msgspec.Struct, frozen=True):
    """An engine that runs, and what its front door must know.

    Attributes:
        engine: Started and warmed up.
        codec: The model's tokenizer.
        max_context: Tokens of prompt and answer together at most.
    """

    engine: Engine
    codec: TextCodec
    max_context: int


def load_engine(directory: Path, options: Options, deliver: Deliver = deliver_directly) -> Loaded:
    """Load a model and start its engine, after one step that warmed everything up.

    Raises:
        CheckpointError: The directory holds no model that fits together.
        DataError: Its tokenizer is missing or of an unknown kind.
    """
    torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    codec = TextCodec.load(directory)
    runner = load_runner(directory, options.max_context, options.max_batch, device, options.pool_bytes)
    if codec.vocab_size > runner.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {codec.vocab_size} tokens, the model {runner.vocab_size}",
            "copy the tokenizer that the model was trained with",
        )
    batcher = Batcher(KVCache(runner.num_blocks, runner.block_size), options.max_batch, _PREFILL_BUDGET)
    _warm_up(runner)
    engine = Engine(runner, codec, batcher, eos_ids(directory, codec), deliver=deliver)
    engine.start()
    return Loaded(engine, codec, runner.max_context)


def eos_ids(directory: Path, codec: TextCodec) -> frozenset[int]:
    """Return the tokens that end an answer: those the model's files name, and the chat format's.

    A role's marker ends an answer as well: the model would go on to speak for somebody else.
    """
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = directory / name
        if path.exists():
            found: Any = msgspec.json.decode(path.read_bytes()).get("eos_token_id")
            ids.update(found if isinstance(found, Iterable) else [found] if found is not None else [])
    for token in SPECIAL_TOKENS:
        try:
            ids.add(codec.special_id(token))
        except DataError:  # a model without our chat format completes texts
            continue
    return frozenset(ids)


def _warm_up(runner: Runner) -> None:
    """Run a prompt and a token after it, so that the first request pays for no first time."""
    blocks = [0]
    runner.forward([Chunk(request_id=0, tokens=[0, 0], start=0, blocks=blocks, samples=True)])
    runner.forward([Chunk(request_id=0, tokens=[0], start=2, blocks=blocks, samples=True)])
