from dataclasses import replace

import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.generation import generate
from lit_gpt.models import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=61)


@pytest.fixture
def model():
    return sharp(CONFIG)


def sharp(config):
    """A model whose next token depends on its whole context: large weights, and a head that is not the embedding."""
    model = GPT(replace(config, tie_embeddings=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


def prompt(B=2, T=8):
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_greedy_equals_the_argmax_of_whole_forwards(small_config):
    model, text = sharp(small_config).eval(), prompt()
    for _ in range(20):
        text = torch.cat((text, model(text)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(generate(model, prompt(), 20, temperature=0), text)
    assert len(set(text[:, 8:].flatten().tolist())) > 2, "a text of one token would prove little"


@torch.no_grad()
def test_transformers_decodes_the_same(model, tmp_path):
    from transformers import AutoModelForCausalLM

    from lit_gpt.checkpoints.huggingface import export_hf

    export_hf(model.config, model.state_dict(), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs.config._attn_implementation = "eager"
    ids = theirs.generate(prompt(), max_new_tokens=16, do_sample=False, attention_mask=torch.ones_like(prompt()))
    # The default model has exact GELU, which GPT-2's class computes too, so the texts agree token by token.
    assert torch.equal(generate(model, prompt(), 16, temperature=0), ids)


@torch.no_grad()
def test_a_full_block_goes_on_from_its_last_half(model):
    text = prompt(B=1, T=30)
    context = text
    for _ in range(40):
        if context.shape[1] > 32:
            context = context[:, -16:]
        token = model(context)[:, -1].argmax(-1, keepdim=True)
        text, context = torch.cat((text, token), 1), torch.cat((context, token), 1)
    assert torch.equal(generate(model, prompt(B=1, T=30), 40, temperature=0), text)


def test_seed_decides_the_text(model):
    one, same, other = (generate(model, prompt(), 12, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_seed_leaves_the_global_generator_alone(model):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    generate(model, prompt(), 3, seed=1)
    assert torch.equal(torch.rand(1), expected)


def test_the_mode_and_the_layout_stay(model):
    strides = {name: parameter.stride() for name, parameter in model.named_parameters()}
    pointers = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    model.train()
    generate(model, prompt(), 10, seed=1)
    assert model.training
    for name, parameter in model.named_parameters():
        assert (parameter.stride(), parameter.data_ptr()) == (strides[name], pointers[name]), name


def test_stop_tokens_end_each_row(model):
    free = generate(model, prompt(), 12, temperature=0)[:, 8:]
    stop = free[0, 3].item()
    ends = [row.tolist().index(stop) if stop in row else None for row in free]
    stopped = generate(model, prompt(), 12, temperature=0, stop_tokens=[stop])[:, 8:]
    for row, end in enumerate(ends):
        if end is None:
            assert torch.equal(stopped[row], free[row, : stopped.shape[1]])
        else:
            assert torch.equal(stopped[row, : end + 1], free[row, : end + 1])
            assert (stopped[row, end:] == stop).all()
    alone = generate(model, prompt()[:1], 12, temperature=0, stop_tokens=[stop])
    assert alone.shape[1] == 8 + ends[0] + 1


def test_dropout_is_off():
    model = sharp(replace(CONFIG, dropout=0.5))
    assert torch.equal(generate(model, prompt(), 8, temperature=0), generate(model, prompt(), 8, temperature=0))


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), {}, "no tokens"),
        (torch.zeros(1, 33, dtype=torch.int64), {}, "33 tokens, more than the 32"),
        (torch.full((1, 3), 61), {}, "token 61 is outside the model's vocabulary of 61"),
        (torch.zeros(1, 3, dtype=torch.int64), {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (torch.zeros(1, 3, dtype=torch.int64), {"top_k": 0}, "top_k is 0"),
    ],
)
def test_refused_at_the_call(model, ids, settings, message):
    with pytest.raises(UserError, match=message):
        generate(model, ids, **{"max_new_tokens": 4} | settings)
