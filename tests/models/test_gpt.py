from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig, LMHead


def ids(config, B=2, T=16):
    return torch.randint(config.vocab_size, (B, T), generator=torch.Generator().manual_seed(0))


def test_names_of_the_parts(small_config):
    model = GPT(small_config)
    children = [name for name, _ in model.named_children()]
    learned = small_config.positions == "learned"
    assert children == ["wte", *(["wpe"] if learned else []), "drop", "blocks", "ln_f", "lm_head"]
    assert (model.wpe is None) != learned
    assert isinstance(model.lm_head, LMHead)
    assert (model.lm_head.weight is model.wte.weight) == small_config.tie_embeddings
    assert all(name.endswith("selection_bias") for name, _ in model.named_buffers())


def test_logits_and_default_positions(small_config):
    model, x = GPT(small_config), ids(small_config)
    logits = model(x)
    assert logits.shape == (2, 16, small_config.vocab_size)
    assert torch.equal(logits, model(x, position_ids=torch.arange(16).expand(2, 16)))
    reversed_positions = torch.arange(16).flip(0).expand(2, 16)
    uses_positions = small_config.positions not in ("alibi", "none")  # ALiBi counts keys, not positions
    assert torch.allclose(logits, model(x, position_ids=reversed_positions)) != uses_positions


def test_head_fn_takes_the_heads_place(small_config):
    model, x = GPT(small_config), ids(small_config)

    def head_fn(hidden, weight, bias):
        assert hidden.shape == (2, 16, small_config.n_embd)
        assert weight is model.lm_head.weight
        assert bias is None
        logits, cap = F.linear(hidden, weight), small_config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap), "anything"

    logits, note = model(x, head_fn=head_fn)
    assert note == "anything"
    assert torch.equal(logits, model(x))


def test_recomputing_activations_gives_the_same_gradients(small_config):
    config = replace(small_config, dropout=0.1)
    model, x = GPT(config), ids(config)

    def gradients(recompute):
        model.zero_grad()
        model.gradient_checkpointing = recompute
        torch.manual_seed(1)
        loss = model(x).square().mean()
        loss.backward()
        return loss.item(), [parameter.grad.clone() for parameter in model.parameters()]

    (loss, plain), (again, recomputed) = gradients(False), gradients(True)
    assert loss == again
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))


def test_context_longer_than_the_block_is_refused(small_config):
    with pytest.raises(UserError, match="33 tokens are more than the model's block_size 32"):
        GPT(small_config)(ids(small_config, T=33))


@pytest.mark.parametrize("pad", ["left", "right", "all"])
def test_padding_makes_no_nan(small_config, pad):
    model, x = GPT(small_config), ids(small_config)
    documents = torch.zeros(2, 16, dtype=torch.int64)
    documents[1] = -1 if pad == "all" else documents[1]
    documents[:, :5] = -1 if pad == "left" else 0
    documents[0, 11:] = -1 if pad == "right" else documents[0, 11:]
    logits = model(x, document_ids=documents)
    assert logits.isfinite().all()
    logits[documents >= 0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_bfloat16_follows_float32(small_config):
    model, x = GPT(small_config), ids(small_config)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(x)
    true = model.to(torch.bfloat16)(x)
    for logits in (mixed, true):
        assert logits.dtype == torch.bfloat16
        assert (logits - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"), [("gpt2", {}), ("tiny", {"n_kv_head": 2, "sliding_window": 5})], ids=["learned", "rope"]
)
def test_compiled_equals_eager(name, changes):
    shape = {"n_layer": 1, "n_head": 4, "n_embd": 32, "vocab_size": 61, "intermediate_size": 64}
    config = GPTConfig.from_preset(name, **shape, **changes)
    model, x = GPT(config), ids(config)
    documents = torch.arange(16).expand(2, 16) // 6
    compiled = torch.compile(model)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        compiled(x, document_ids=documents), model(x, document_ids=documents), rtol=1e-4, atol=1e-5
    )
