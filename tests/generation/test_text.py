"""Text in, text out."""

import pytest

from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.generation import stream_text
from lit_gpt.generation.detokenizer import Detokenizer
from lit_gpt.models import GPT, GPTConfig


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["def add(a, b):\n    return a + b\n", "größer 漢字 🙂 größer 漢字 🙂"] * 5, 320)


@pytest.fixture(scope="module")
def model():
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=320, block_size=64))
    model.init_weights(0)
    return model


@pytest.mark.parametrize("text", ["def add(a, b):", "größer 漢字 🙂", "👩‍👩‍👧 é ñ"])
def test_pieces_are_whole_characters_and_together_the_text(tokenizer, text):
    detokenizer = Detokenizer(tokenizer, [])
    pieces = [*map(detokenizer.add, tokenizer.encode(text).tolist()), detokenizer.flush()]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_the_end_of_text_is_not_printed(tokenizer, model):
    from lit_gpt.generation import Engine, SamplingParams

    bias = SamplingParams(max_new_tokens=5, temperature=0, logit_bias={tokenizer.separator_id: 100.0})
    completion = Engine(model, tokenizer).generate([tokenizer.encode("def").tolist()], bias)[0]
    assert (completion.token_ids, completion.text) == ([tokenizer.separator_id], "")


def test_the_mode_comes_back(tokenizer, model):
    model.train()
    assert "".join(stream_text(model, tokenizer, "def", 3, seed=1))
    assert model.training


def test_the_same_seed_gives_the_same_text(tokenizer, model):
    one, two, other = ("".join(stream_text(model, tokenizer, "def", 20, seed=seed)) for seed in (1, 1, 2))
    assert one == two != other


def test_a_space_at_the_end_of_the_prompt_belongs_to_the_next_word(tokenizer, model):
    space = tokenizer.encode("def ").tolist()[-1]
    allowed = tokenizer.beginning_with(space)
    assert space in allowed
    assert len(allowed) > 1
    for seed in range(20):
        first = next(stream_text(model, tokenizer, "def ", 8, temperature=1.0, seed=seed), "")
        whole = tokenizer.encode("def " + first).tolist()
        assert whole[1] in allowed, "the prompt's space and the first word are tokens as in training"
