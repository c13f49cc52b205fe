"""The engine's loop: submit, stream, cancel, sleep."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tidecell.inference.batcher import Batcher, Chunk
from tidecell.inference.engine import Engine
from tidecell.inference.kv_cache import KVCache
from tidecell.inference.loading import Options, eos_ids, load_engine
from tidecell.inference.outputs import Finish, Output
from tidecell.inference.params import SamplingParams
from tidecell.inference.runner import Runner
from tidecell.inference.text import TextCodec
from tidecell.models.checkpoint import save_model
from tidecell.models.transformer import ModelConfig, Transformer
from tidecell.structs.chat import SPECIAL_TOKENS
from tidecell.structs.errors import CheckpointError

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def make_codec() -> TextCodec:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(["the tide comes and the tide goes"] * 3, trainer)
    return TextCodec(inner)


CODEC = make_codec()
CONFIG = ModelConfig(
    vocab_size=CODEC.vocab_size + 5, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
)  # fmt: skip


class Slow(Runner):
    """A runner whose passes wait until they are let through."""

    gate: queue.SimpleQueue[None] | None = None

    def forward(self, chunks: list[Chunk]) -> tuple[torch.Tensor, list[int]]:  # type: ignore[override]
        if self.gate is not None:
            self.gate.get(timeout=10)
        return super().forward(chunks)


class Rig:
    """An engine and what it puts out."""

    def __init__(self, num_blocks: int = 64, max_batch: int = 8) -> None:
        torch.set_num_threads(1)
        self.runner = Slow(Transformer(CONFIG, seed=9).state_dict(), CONFIG, num_blocks, 8)
        self.batcher = Batcher(KVCache(num_blocks, 8), max_batch, 64)
        self.engine = Engine(self.runner, CODEC, self.batcher, frozenset({0}))
        self.engine.start()

    def ask(self, prompt: list[int], params: SamplingParams = GREEDY) -> queue.SimpleQueue[Output]:
        outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        self.last_id = self.engine.submit(prompt, params, outputs.put)
        return outputs

    def answer(self, prompt: list[int], params: SamplingParams = GREEDY) -> tuple[str, list[int], Finish]:
        return drained(self.ask(prompt, params))


def drained(outputs: queue.SimpleQueue[Output]) -> tuple[str, list[int], Finish]:
    text, tokens = "", []
    while True:
        output = outputs.get(timeout=20)
        text += output.text
        tokens += [choice.token for choice in output.choices]
        if output.finish is not None:
            return text, tokens, output.finish


def until(happens: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    if made.runner.gate is not None:
        for _ in range(1000):
            made.runner.gate.put(None)
    made.engine.stop()


def test_an_answer_has_as_many_tokens_as_asked_for_and_their_text(rig: Rig) -> None:
    text, tokens, finish = rig.answer(CODEC.encode("the tide"))
    assert len(tokens) == 12
    assert finish is Finish.LENGTH
    assert text == CODEC.decode(tokens)


def test_no_token_beyond_the_tokenizer_is_ever_chosen(rig: Rig) -> None:
    params = msgspec.structs.replace(GREEDY, temperature=1.8, max_tokens=100)
    _, tokens, _ = rig.answer([5], params)
    assert max(tokens) < CODEC.vocab_size


def test_many_at_once_get_what_each_gets_alone(rig: Rig) -> None:
    prompts = [CODEC.encode("the tide goes"[: 1 + i]) for i in range(12)]
    kinds = [GREEDY, msgspec.structs.replace(GREEDY, temperature=0.9, top_p=0.9, seed=4)]
    alone = [rig.answer(prompt, kinds[i % 2]) for i, prompt in enumerate(prompts)]
    queues = [rig.ask(prompt, kinds[i % 2]) for i, prompt in enumerate(prompts)]
    assert [drained(outputs) for outputs in queues] == alone


def test_a_seed_repeats_an_answer_and_another_gives_another(rig: Rig) -> None:
    params = msgspec.structs.replace(GREEDY, temperature=1.5, seed=1)
    first = rig.answer([7], params)
    assert rig.answer([7], params) == first
    assert rig.answer([7], msgspec.structs.replace(params, seed=2)) != first


def test_a_stop_string_ends_the_answer_before_it(rig: Rig) -> None:
    text, _, _ = rig.answer([9])
    stop = text[3:6]
    cut, tokens, finish = rig.answer([9], msgspec.structs.replace(GREEDY, stop=(stop,)))
    assert cut == text[: text.index(stop)]
    assert finish is Finish.STOP
    assert len(tokens) <= 12


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(rig: Rig) -> None:
    _, tokens, _ = rig.answer([9])
    ended = rig.answer([9], msgspec.structs.replace(GREEDY, stop_token_ids=(tokens[4],)))
    first = tokens.index(tokens[4])
    assert ended[1:] == (tokens[:first], Finish.STOP)


def test_the_models_end_token_ends_unless_told_to_go_on(rig: Rig) -> None:
    always_end = msgspec.structs.replace(GREEDY, logit_bias=((0, 100.0),))
    assert rig.answer([9], msgspec.structs.replace(always_end, ignore_eos=False)) == ("", [], Finish.STOP)
    assert rig.answer([9], always_end)[1] == [0] * 12


def test_cancelling_frees_blocks_and_leaves_the_others_alone(rig: Rig) -> None:
    expected = rig.answer([5])
    rig.runner.gate = queue.SimpleQueue()
    rig.ask(list(range(40)), msgspec.structs.replace(GREEDY, max_tokens=80))
    doomed = rig.last_id
    other = rig.ask([5])
    rig.runner.gate.put(None)
    rig.runner.gate.put(None)
    until(lambda: rig.engine.load().cache.used_blocks >= 6)
    rig.engine.cancel(doomed)
    for _ in range(30):
        rig.runner.gate.put(None)
    assert drained(other) == expected
    until(lambda: rig.engine.load().cache.used_blocks == 0)
    assert rig.engine.load().running == 0


def test_cancelling_what_waits_or_has_ended_is_harmless(rig: Rig) -> None:
    rig.answer([5])
    rig.engine.cancel(rig.last_id)
    rig.engine.cancel(12345)
    assert rig.answer([5])[2] is Finish.LENGTH


def test_a_failure_ends_what_is_running_and_the_engine_goes_on(rig: Rig) -> None:
    good = rig.runner.forward

    def broken(chunks: list[Chunk]) -> tuple[torch.Tensor, list[int]]:
        raise RuntimeError("no memory")

    rig.runner.forward = broken  # type: ignore[method-assign]
    output = rig.ask([5]).get(timeout=10)
    assert (output.finish, output.error) == (Finish.ERROR, "RuntimeError: no memory")
    rig.runner.forward = good  # type: ignore[method-assign]
    assert rig.answer([5])[2] is Finish.LENGTH
    assert rig.engine.load().cache.used_blocks == 0


def test_an_idle_engine_uses_no_processor(rig: Rig) -> None:
    rig.answer([5])
    before_s = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before_s < 0.03


def test_stopping_cancels_what_is_there_and_refuses_what_comes() -> None:
    rig = Rig()
    rig.runner.gate = queue.SimpleQueue()
    outputs = rig.ask([5])
    for _ in range(2):
        rig.runner.gate.put(None)
    until(lambda: rig.engine.load().running == 1)
    for _ in range(3):
        rig.runner.gate.put(None)
    rig.engine.stop()
    assert drained(outputs)[2] is Finish.CANCELLED
    with pytest.raises(RuntimeError, match="the engine has stopped"):
        rig.ask([5])


def test_what_cannot_ever_fit_is_refused_at_once(rig: Rig) -> None:
    with pytest.raises(ValueError, match="KV blocks are needed; there are 64"):
        rig.ask([1], msgspec.structs.replace(GREEDY, max_tokens=1000))


def test_times_and_tokens_are_counted(rig: Rig) -> None:
    rig.answer([5, 6, 7])
    meters = rig.engine.meters
    assert (meters.prompt_tokens, meters.generated_tokens) == (3, 12)
    assert sum(meters.first_token.counts) == 1
    assert sum(meters.between_tokens.counts) == 11
    assert meters.computed_tokens == 3 + 11


def test_a_model_directory_becomes_an_engine(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text(CODEC._inner.to_str())
    model = Transformer(CONFIG, seed=9)
    save_model(tmp_path / "model", model, tokenizer_dir=tokenizer, generation={"eos_token_id": [1, 2]})
    assert eos_ids(tmp_path / "model", CODEC) == {0, 1, 2, 3}
    loaded = load_engine(tmp_path / "model", Options(max_context=64, device="cpu"))
    outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
    loaded.engine.submit([5], GREEDY, outputs.put)
    assert len(drained(outputs)[1]) == 12
    loaded.engine.stop()
    assert loaded.max_context == 64
    with pytest.raises(CheckpointError, match="a context of 999 tokens is asked for; the model knows 128"):
        load_engine(tmp_path / "model", Options(max_context=999, device="cpu"))
