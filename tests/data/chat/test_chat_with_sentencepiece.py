"""Tokenizers that put a space before a text (Llama 2's, Mistral's): none appears where a conversation is cut apart."""

import json

import pytest
import tokenizers
from small_texts import make_texts
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lit_gpt.data.chat import ChatRenderer, load_chat_template, render, with_chat_template
from lit_gpt.data.tokenizers import load_tokenizer

TURNS = [
    {"role": "user", "content": "Write f"},
    {"role": "assistant", "content": "def f"},
    {"role": "user", "content": "Go on <|im_end|> now"},
    {"role": "assistant", "content": "return <|im_end|>1"},
]


@pytest.fixture(params=["legacy", "first", "always", "bytes"])
def renderer(request, tmp_path):
    """The four ways in which published tokenizers say it."""
    trained = tokenizers.Tokenizer(models.BPE(byte_fallback=request.param != "bytes", unk_token="<unk>"))
    metaspace = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    if request.param == "bytes":
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trained.decoder = decoders.ByteLevel()
        alphabet = []
    elif request.param == "legacy":
        trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trained.decoder = decoders.Sequence(metaspace)
    else:
        trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=request.param, split=False)
        trained.decoder = decoders.Sequence(metaspace)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", *alphabet],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if not alphabet else [],
        show_progress=False,
    )
    trained.train_from_iterator(["Write def f Go on return 1 now user assistant\n", *make_texts(50, seed=3)], trainer)
    rules = json.loads(trained.to_str())  # single bytes are ordinary tokens there
    rules["added_tokens"] = [token for token in rules["added_tokens"] if not token["content"].startswith("<0x")]
    (tmp_path / "tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    return ChatRenderer(with_chat_template(load_tokenizer(tmp_path), load_chat_template("chatml")))


def test_the_tokens_are_those_of_the_whole_text(renderer):
    """Tokenised in one piece, as transformers does it: only what would straddle a border may differ, and here none."""
    chat = renderer(TURNS[:2])
    backend = tokenizers.Tokenizer.from_str(renderer.tokenizer.backend.to_str())
    backend.encode_special_tokens = False
    assert chat.ids == backend.encode(chat.text, add_special_tokens=False).ids


def test_no_space_is_learned_or_slipped_into_a_content(renderer):
    chat = renderer(TURNS)
    text = renderer.tokenizer.decode(chat.ids)
    assert "assistant\ndef f<|im_end|>" in text
    assert "user\nGo on <|im_end|> now<|im_end|>" in text
    assert "assistant\nreturn <|im_end|>1<|im_end|>" in text
    prompt = render(renderer.tokenizer, TURNS[:3])
    assert chat.ids[: len(prompt)] == prompt
