"""Tensor parallelism on CPU processes (gloo) against one process."""

from functools import partial

import pytest
import torch
from processes import Collectives, spawn

from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.moe import Routing
from lit_gpt.objectives import (
    linear_cross_entropy,
    linear_log_probs,
    mtp_labels,
    routing_loss,
    token_cross_entropy,
    token_predictions,
)
from lit_gpt.parallel import Layout
from lit_gpt.parallel.gradients import clip_gradients, sum_partial_gradients, total_norm
from lit_gpt.parallel.tensor import apply_tensor_parallel, check_tensor_parallel

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 61, "init_std": 0.1}
ROPE = {"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "intermediate_size": 48}
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "intermediate_size": 16,
    "shared_intermediate_size": 24,
    "scores": "sigmoid",
    "selection_bias": True,
    "balance_loss_weight": 0.05,
    "z_loss_weight": 0.01,
}
MLA = {"kv_lora_rank": 12, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
FEATURES = {
    "textbook, tied": {},
    "untied, grouped queries": ROPE | {"tie_embeddings": False, "n_kv_head": 2},
    "head norms": ROPE | {"qk_norm": "head", "norm_placement": "sandwich"},
    "projection norms": ROPE | {"qk_norm": "projection", "norm_placement": "output", "norm_offset": True},
    "projection layernorms": {"qk_norm": "projection", "norm_placement": "post"},
    "sinks": ROPE | {"attention_sinks": True, "sliding_window": 6, "attention_bias": True},
    "alibi": {"positions": "alibi", "norm": "layernorm", "parallel_residual": True},
    "softcaps": ROPE | {"logit_softcap": 5.0, "attention_softcap": 4.0, "logit_scale": 0.5},
    "sinusoidal": {"positions": "sinusoidal", "tie_embeddings": False},
    "mixture": ROPE | {"moe": MOE, "tie_embeddings": False},
    "mixture with biases": ROPE | {"moe": MOE | {"router_bias": True, "layers": (False, True)}, "mlp_bias": True},
    "latent": ROPE | {"mla": MLA},
    "latent, direct queries": ROPE | {"mla": {k: v for k, v in MLA.items() if k != "q_lora_rank"}},
    "multi_token": ROPE | {"multi_token": 2, "moe": MOE, "mla": MLA, "tie_embeddings": False},
}


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({}, 3, "n_head 4 .* 3 "),
        ({"n_kv_head": 2}, 4, "n_kv_head 2 .* 4 "),
        ({"intermediate_size": 50}, 4, "intermediate_size 50 .* 4 "),
        ({"moe": MOE | {"intermediate_size": 6}}, 4, "moe.intermediate_size 6 .* 4 "),
        ({"moe": MOE | {"shared_intermediate_size": 6}}, 4, "moe.shared_intermediate_size 6 .* 4 "),
        ({"vocab_size": 9}, 4, "vocab_size 9 .* 4 "),
    ],
)
def test_what_cannot_be_divided(changes, size, message):
    with pytest.raises(UserError, match=message):
        check_tensor_parallel(GPTConfig.from_dict(SMALL | changes), size)


def test_two_processes_compute_what_one_does():
    """The smoke test: loss and gradients of a small mixture."""
    spawn(_features, Layout(tensor=2), ["mixture"], 16)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "length"), [(2, 15), (4, 16)])
def test_every_feature(size, length):
    names = [name for name in FEATURES if size == 2 or "grouped" not in name]
    spawn(_features, Layout(tensor=size), names, length)


def _features(mesh, names, length):
    size = mesh["tensor"].size()
    for name in names:
        config = GPTConfig.from_dict(SMALL | FEATURES[name])
        check_tensor_parallel(config, size)
        try:
            _compare(config, mesh["tensor"], length)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def build(config, mesh):
    """Return the model of one process, and the one that is split."""
    alone = GPT(config)
    alone.init_weights(3)
    with torch.device("meta"):
        split = GPT(config)
    apply_tensor_parallel(split, mesh)
    split.to_empty(device="cpu")
    split.init_weights(3)
    return alone, split


CHUNK = 20


def expected_collectives(config, chunks):
    """Return the collectives of one micro-batch, forward and backward, by hand."""
    layers, heads = config.n_layer + config.multi_token, 1 + config.multi_token
    mixtures = sum(config.is_moe(min(layer, config.n_layer - 1)) for layer in range(layers))
    # Attention and MLP gather and scatter; backward the opposite. Embeddings are split and the head's input gathered;
    # each chunk of the loss exchanges its sums.
    all_gather = 4 * layers + heads + heads + heads * chunks
    reduce_scatter = 4 * layers + heads
    # Embeddings; the gradients of a router's weights; sums (and for LayerNorm means) of the norms of queries and keys.
    statistics = {"rmsnorm": 1, "layernorm": 2}[config.norm] if config.qk_norm == "projection" else 0
    all_reduce = heads + mixtures + 2 * 2 * statistics * layers
    return {"all_gather": all_gather, "reduce_scatter": reduce_scatter, "all_reduce": all_reduce}


def example(length):
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(SMALL["vocab_size"], (2, 4, length), generator=generator)
    labels[0, :3] = IGNORE_INDEX
    documents = torch.zeros_like(ids)
    documents[:, 6:] = 1
    documents[3, 12:] = -1
    return ids, labels.masked_fill(documents == -1, IGNORE_INDEX), documents


def _loss(model, ids, labels, documents):
    """Return the summed loss with all of its parts."""
    config = model.config
    routing = Routing(documents) if config.moe else None
    head = partial(linear_cross_entropy, z_loss=1e-2, softcap=config.logit_softcap, chunk_size=CHUNK)
    ahead = [partial(head, labels=mtp_labels(labels, documents, depth + 1)) for depth in range(config.multi_token)]
    result = model(
        ids, document_ids=documents, head_fn=partial(head, labels=labels), routing=routing, mtp_head_fns=ahead
    )
    losses = [part.loss for part in ([result[0], *result[1]] if ahead else [result])]
    if routing is not None:
        losses.append(routing_loss(routing, config.moe, (labels != IGNORE_INDEX).sum(1)))
    return torch.stack(losses).sum()


def _compare(config, mesh, length):
    alone, split = build(config, mesh)
    assert (split.lm_head.weight is split.wte.weight) == config.tie_embeddings
    for (name, whole), piece in zip(alone.named_parameters(), split.named_parameters(), strict=True):
        assert piece[0] == name
        assert torch.equal(piece[1].full_tensor(), whole), name
    # What is not split are norms, latents, routers, positions, and biases after a sum over processes.
    whole = ("ln", "norm", "router", "wpe", "kv_a", "q_a", "o_proj.bias", "down_proj.bias", "down_bias", "token.0.proj",
             "token.1.proj")  # fmt: skip
    for name, piece in split.named_parameters():
        is_whole = any(part in name for part in whole) and not (config.qk_norm == "projection" and "attn." in name)
        if not (is_whole or name.startswith(("wte", "lm_head")) or name.endswith("o_proj.bias")):
            assert piece.to_local().numel() * mesh.size() == piece.numel(), name

    ids, labels, documents = example(length)
    losses, collectives = [], Collectives()
    for model in (alone, split):
        with collectives:
            loss = _loss(model, ids, labels, documents)
            loss.backward()
        losses.append(loss.detach())
    assert collectives.counts == expected_collectives(config, -(-ids.numel() // CHUNK))
    sum_partial_gradients(split.parameters())
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-6, atol=0)
    same_gradients(alone, split)
    norm = total_norm(alone.parameters())
    torch.testing.assert_close(total_norm(split.parameters()), norm, rtol=1e-5, atol=0)
    for model in (alone, split):
        clip_gradients(model.parameters(), float(norm) / 2)
    torch.testing.assert_close(total_norm(split.parameters()), norm / 2, rtol=1e-5, atol=0)

    with torch.no_grad():
        inputs = {"document_ids": documents}
        real = documents != -1
        torch.testing.assert_close(split(ids, **inputs)[real], alone(ids, **inputs)[real], rtol=1e-4, atol=1e-4)
        for fn in (token_predictions, partial(token_cross_entropy, labels=labels, softcap=config.logit_softcap)):
            one, other = (model(ids, head_fn=fn, **inputs)[real] for model in (alone, split))
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
    for model in (alone, split):
        model.zero_grad()
        fn = partial(linear_log_probs, labels=labels, softcap=config.logit_softcap, chunk_size=CHUNK)
        scores = model(ids, head_fn=fn, **inputs)
        (scores * torch.arange(scores.numel()).view_as(scores)).sum().backward()
    sum_partial_gradients(split.parameters())
    same_gradients(alone, split)


def same_gradients(alone, split):
    """Compare gradients within 1e-5 of each one's norm; those that are 0 but for rounding, of all gradients' norm."""
    total = total_norm(alone.parameters())
    for (name, whole), piece in zip(alone.named_parameters(), split.parameters(), strict=True):
        if whole.grad is None:
            assert piece.grad is None, name
            continue
        error = torch.linalg.norm(piece.grad.full_tensor() - whole.grad)
        assert error <= 1e-5 * torch.linalg.norm(whole.grad) + 1e-7 * total, f"{name}: {error:.1e}"
