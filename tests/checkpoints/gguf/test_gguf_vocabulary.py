"""Tokenizers inside GGUF files: what is written, and SentencePiece's rule on it against the tokenizer itself."""

import json
from itertools import pairwise

import jinja2
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lit_gpt.checkpoints.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    pre_tokenizer_name,
    vocabulary,
)
from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.chat import load_chat_template, with_chat_template
from lit_gpt.data.compiled_bpe import GPT2_PATTERN, GPT4_PATTERN
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError

TEXT = "def add(left, right):\n    return left + right  # naïve Straße 12 345 don't 漢字 🙂\n"


def sentencepiece_like(normalizer):
    """Pieces with ▁ and a byte for each character that is none, as Llama 2's tokenizer.json has them."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizer
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>"]
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special + alphabet, show_progress=False)
    words = [word for line in [TEXT[:60]] * 3 for word in line.replace(" ", " \0").split("\0")]
    backend.train_from_iterator([*words, "return return returned leftmost"], trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.add_tokens([tokenizers.AddedToken("▁▁tab", special=False)])
    return Tokenizer(backend, "</s>")


def join_by_score(text, values):
    """SentencePiece's BPE (Kudo and Richardson 2018; `llm_tokenizer_spm` of llama.cpp), in loops."""
    names = values["tokenizer.ggml.tokens"]
    ids = {token: index for index, token in enumerate(names)}
    scores = values["tokenizer.ggml.scores"]
    symbols = list(((" " if values["tokenizer.ggml.add_space_prefix"] else "") + text).replace(" ", "▁"))
    while True:
        pairs = [
            (scores[ids[a + b]], -place)
            for place, (a, b) in enumerate(pairwise(symbols))
            if a + b in ids and values["tokenizer.ggml.token_type"][ids[a + b]] == NORMAL
        ]
        if not pairs:
            break
        place = -max(pairs)[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    found = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found


PREPENDING = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


@pytest.mark.parametrize("normalizer", [PREPENDING, normalizers.Replace(" ", "▁")])
def test_sentencepiece_cuts_as_the_tokenizer_does(normalizer):
    tokenizer = sentencepiece_like(normalizer)
    values = vocabulary(tokenizer, 440, tokenizer.stop_ids)
    assert values["tokenizer.ggml.add_space_prefix"] == (normalizer is PREPENDING)
    for text in (TEXT, "returned   leftmost", "left", "ééé\t\n", "漢 漢"):
        assert join_by_score(text, values) == tokenizer.encode(text).tolist(), text
    names, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    kinds = dict(zip(names, types, strict=True))
    assert [kinds[t] for t in ("<unk>", "</s>", "<0x0A>", "▁")] == [UNKNOWN, CONTROL, BYTE, NORMAL]
    assert kinds["  tab"] == USER_DEFINED
    assert types[-1] == UNUSED
    assert len(names) == len(set(names)) == 440
    assert (values["tokenizer.ggml.unknown_token_id"], values["tokenizer.ggml.eos_token_id"]) == (0, 2)


def test_byte_level_tokens_merges_and_ends():
    plain = train_bpe([TEXT] * 3, 300)
    chat = with_chat_template(plain, load_chat_template("chatml"))
    end = chat.backend.token_to_id("<|im_end|>")
    values = vocabulary(chat, 310, [chat.separator_id, end])
    names = values["tokenizer.ggml.tokens"]
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert values["tokenizer.ggml.pre"] == "gpt-2"
    assert names[:302] == [chat.backend.id_to_token(index) for index in range(302)]
    assert names[302:] == [f"[PAD{index}]" for index in range(302, 310)]
    state = json.loads(chat.backend.to_str())
    assert [merge.split(" ") for merge in values["tokenizer.ggml.merges"]] == state["model"]["merges"]
    assert values["tokenizer.ggml.bos_token_id"] == values["tokenizer.ggml.eos_token_id"] == chat.separator_id
    assert values["tokenizer.ggml.eot_token_id"] == end
    assert values["tokenizer.ggml.add_bos_token"] is False  # conversations begin with the template's own token
    assert vocabulary(plain, 300, [0])["tokenizer.ggml.add_bos_token"] is True
    # llama.cpp's Jinja knows no `generation` blocks: the template is without them and says the same
    template = values["tokenizer.chat_template"]
    assert "generation %}" not in template
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rendered = environment.from_string(template).render(messages=messages, add_generation_prompt=False, tools=None)
    assert "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>" in rendered
    published = Tokenizer(plain.backend, plain.separator).as_published()
    assert "tokenizer.ggml.bos_token_id" not in vocabulary(published, 300, [0])


@pytest.mark.parametrize(
    ("pattern", "digits", "name"), [("gpt2", False, "gpt-2"), ("gpt4", False, "dbrx"), ("gpt4", True, "qwen2")]
)
def test_names_of_our_own_patterns(pattern, digits, name):
    tokenizer = train_bpe([TEXT] * 3, 300, pattern, split_digits=digits)
    assert vocabulary(tokenizer, 300, [0])["tokenizer.ggml.pre"] == name


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def state_of(*parts, normalizer=None, **model):
    return {
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*parts, BYTES]},
        "model": model,
    }


def test_names_of_published_tokenizers():
    """The patterns of Llama 3, Qwen 2 and 3, OLMo 2 and SmolLM2, as their tokenizer.json have them."""
    llama3 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    assert pre_tokenizer_name(state_of(split(llama3), ignore_merges=True)) == "llama-bpe"
    assert pre_tokenizer_name(state_of(split(llama3))) == "dbrx"  # the same words, joined by merges: OLMo 2
    qwen = llama3.replace("{1,3}", "")
    assert pre_tokenizer_name(state_of(split(qwen), normalizer={"type": "NFC"})) == "qwen2"
    smol = [{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}]
    assert pre_tokenizer_name({**state_of(), "pre_tokenizer": {"type": "Sequence", "pretokenizers": smol}}) == "smollm"


def test_what_llama_cpp_would_cut_otherwise_is_refused():
    with pytest.raises(UserError, match="the pattern"):
        pre_tokenizer_name(state_of(split(r"\w+")))
    with pytest.raises(UserError, match="add_prefix_space"):
        pre_tokenizer_name(state_of({**BYTES, "add_prefix_space": True}))
    with pytest.raises(UserError, match="normalizer of type Lowercase"):
        pre_tokenizer_name(state_of(split(GPT4_PATTERN), normalizer={"type": "Lowercase"}))
    with pytest.raises(UserError, match="the pattern"):  # digits after GPT-2's words: " 12" would lose its space
        vocabulary(train_bpe([TEXT] * 3, 300, "gpt2", split_digits=True), 300, [0])
    assert pre_tokenizer_name(state_of(split(GPT2_PATTERN))) == "gpt-2"
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a"))
    with pytest.raises(UserError, match="WordLevel"):
        vocabulary(Tokenizer(backend), 2, [1])
    # a token that no merge gives: whole where merges are ignored, and a name that does so is not to be had
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(UserError, match="the token 'ab'"):
        vocabulary(Tokenizer(backend), 4, [3])
    names = ["<unk>", "</s>", "a", "b", "c", "ab", "bc", "abc"]
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]  # "abc" sooner and later than "bc"
    model = models.BPE({name: i for i, name in enumerate(names)}, merges, byte_fallback=True, unk_token="<unk>")
    with pytest.raises(UserError, match="'abc'"):
        vocabulary(Tokenizer(tokenizers.Tokenizer(model), "</s>"), 8, [1])
