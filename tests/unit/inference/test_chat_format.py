"""Training and serving see a conversation as the same tokens."""

from __future__ import annotations

from pathlib import Path

from tidecell.data.tokenizer import TextTokenizer
from tidecell.inference.text import TextCodec
from tidecell.structs.chat import render_chat

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Grüße <|endoftext|>\n"},
    {"role": "assistant", "content": "日本"},
    {"role": "user", "content": ""},
]


def test_a_conversation_has_the_same_tokens_in_training_and_serving(tmp_path: Path) -> None:
    trained = TextTokenizer.train(["the tide comes and goes, Grüße"] * 3, vocab_size=300)
    trained.save(tmp_path)
    served = TextCodec.load(tmp_path)
    ids, spoken = trained.encode_chat(MESSAGES, ask=True)
    assert served.encode_chat(MESSAGES) == ids.tolist()
    expected = [
        part
        for text, is_assistant in render_chat(MESSAGES, add_generation_prompt=True)
        for part in [is_assistant] * (1 if text.startswith("<|") else len(served.encode(text)))
    ]
    assert spoken.tolist() == expected
