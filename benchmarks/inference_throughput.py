"""Tokens per CPU-second of the serving engine at 1, 8 and 32 concurrent requests.

    OMP_NUM_THREADS=1 python benchmarks/inference_throughput.py [--model DIR]

Without a model, a random one of about 3.5 M parameters. "uniform": prompts of 32 tokens, 32 new each;
"ragged": twice as many requests as run at once, prompts and answers of 8 to 56 tokens. Prefill is
included. Prints one JSON object per line. Expected on an AVX2 core (2 shared vCPUs, loaded), 3.5 M
parameters: 210 to 310 tokens per CPU-second alone, 950 to 1,500 at 8, 1,900 to 2,900 at 32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tidecell.inference.batcher import Batcher
from tidecell.inference.engine import Engine
from tidecell.inference.kv_cache import KVCache
from tidecell.inference.outputs import Output
from tidecell.inference.params import SamplingParams
from tidecell.inference.runner import BLOCK_SIZE, Runner
from tidecell.inference.text import TextCodec
from tidecell.models.checkpoint import load_model
from tidecell.models.transformer import ModelConfig, Transformer

Asked = Sequence[tuple[list[int], int]]


class NoText:
    """A codec for models without a tokenizer: every token is one letter."""

    special_ids: frozenset[int] = frozenset()

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def token_bytes(self, token: int) -> bytes:
        return b"x"


def requests(kind: str, concurrency: int, vocab_size: int) -> Asked:
    """Return prompts and how many tokens to generate after each."""
    rng = random.Random(concurrency)
    if kind == "uniform":
        shapes = [(32, 32)] * concurrency
    else:
        shapes = [(rng.randint(8, 56), rng.randint(8, 56)) for _ in range(2 * concurrency)]
    return [([rng.randrange(vocab_size) for _ in range(prompt)], new) for prompt, new in shapes]


def measure(
    model: Transformer, config: ModelConfig, concurrency: int, asked: Asked, temperature: float
) -> float:
    """Return generated tokens per CPU-second of this process."""
    num_blocks = concurrency * -(-config.max_position_embeddings // BLOCK_SIZE)
    runner = Runner(model.state_dict(), config, num_blocks, BLOCK_SIZE)
    codec: TextCodec = NoText(config.vocab_size)  # type: ignore[assignment]
    batcher = Batcher(KVCache(num_blocks, BLOCK_SIZE), concurrency, 256)
    engine = Engine(runner, codec, batcher, frozenset())
    engine.start()
    done = threading.Semaphore(0)

    def sink(output: Output) -> None:
        if output.finish is not None:
            done.release()

    began_s = time.process_time()
    for seed, (prompt, new) in enumerate(asked):
        engine.submit(prompt, SamplingParams(max_tokens=new, temperature=temperature, seed=seed), sink)
    for _ in asked:
        done.acquire()
    took_s = time.process_time() - began_s
    engine.stop()
    return sum(new for _, new in asked) / took_s


def main() -> None:
    """Run every case, the whole set ``--rounds`` times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.model:
        model, config = load_model(args.model)
    else:
        config = ModelConfig(vocab_size=2048, hidden_size=256, intermediate_size=704, num_attention_heads=8,
                             num_key_value_heads=4)  # fmt: skip
        model = Transformer(config, seed=0)
    for round_number in range(args.rounds):
        for kind in ("uniform", "ragged"):
            for concurrency in (1, 8, 32):
                asked = requests(kind, concurrency, config.vocab_size)
                rate = measure(model, config, concurrency, asked, args.temperature)
                line = {
                    "name": f"inference.{kind}.{concurrency}",
                    "value": round(rate, 1),
                    "unit": "tokens/cpu-s",
                    "baseline": None,
                    "ratio": None,
                    "parameters": model.num_parameters(),
                    "temperature": args.temperature,
                    "round": round_number,
                    "torch": torch.__version__,
                    "machine": platform.machine(),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
