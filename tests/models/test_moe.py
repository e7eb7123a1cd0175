"""Mixtures of experts against loops over tokens, as the papers write them."""

import pytest
import torch
from torch.nn import functional as F

from lit_gpt.models import GPT, Context, GPTConfig, MoEConfig
from lit_gpt.models import moe as moe_module
from lit_gpt.models.mlp import ACTIVATIONS, GATES
from lit_gpt.models.moe import (
    Experts,
    MixtureOfExperts,
    Router,
    Routing,
    grouped_linear,
    grouped_mm_serves,
    looped_linear,
    sort_by_expert,
    weighted_hidden,
)
from lit_gpt.optim import MuonAdamW, parameter_groups


def small(moe=None, **changes):
    moe = {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 8} | (moe or {})
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 31, "block_size": 12, "mlp": "swiglu"}
    return GPTConfig(**shape | {"moe": MoEConfig(**moe)} | changes)


def randomized(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module


def one_expert(experts, e, x):
    """An expert as a plain MLP on one token (C,)."""
    bias = experts.up_bias is not None
    up = experts.up_proj[e] @ x + (experts.up_bias[e] if bias else 0)
    if experts.kind in ("swiglu", "swiglu_clamped"):
        gate = experts.gate_proj[e] @ x + (experts.gate_bias[e] if bias else 0)
        if experts.kind == "swiglu":
            hidden = F.silu(gate) * up
        else:
            gate, up = gate.clamp(max=7), up.clamp(-7, 7)
            hidden = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    else:
        hidden = F.gelu(up)
    return experts.down_proj[e] @ hidden + (experts.down_bias[e] if bias else 0)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu", "swiglu_clamped"])
@pytest.mark.parametrize("bias", [False, True])
def test_every_token_gets_the_weighted_sum_of_its_experts(mlp, bias):
    experts = randomized(Experts(small(mlp=mlp, mlp_bias=bias))).double()
    x = torch.randn(20, 16, dtype=torch.float64)
    chosen = torch.stack([torch.randperm(6)[:2] for _ in range(20)])
    weights = torch.rand(20, 2, dtype=torch.float64)
    expected = torch.zeros(20, 16, dtype=torch.float64)
    for n in range(20):
        for j in range(2):
            expected[n] += weights[n, j] * one_expert(experts, chosen[n, j], x[n])
    torch.testing.assert_close(experts(x, chosen, weights), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("skewed", [False, True])
def test_grouped_is_looped_forward_and_backward(skewed, monkeypatch):
    config = small({"num_experts": 8, "num_experts_per_tok": 3, "shared_intermediate_size": 8})
    moe = randomized(MixtureOfExperts(config))
    if skewed:  # experts 0 to 3 get everything, the others nothing
        moe.router.weight.data[4:] = 0
        moe.router.weight.data[:4] = moe.router.weight.data[:4].abs()
    x = torch.randn(3, 12, 16).abs() if skewed else torch.randn(3, 12, 16)
    direction = torch.randn(3, 12, 16)

    def run():
        inputs = x.clone().requires_grad_()
        moe.zero_grad()
        y = moe(inputs)
        y.backward(direction)
        return [y.detach(), inputs.grad, *(p.grad.clone() for p in moe.parameters())]

    assert grouped_mm_serves(x, moe.experts.up_proj)
    fast = run()
    monkeypatch.setattr(moe_module, "grouped_mm_serves", lambda x, weight: False)
    for ours, looped in zip(fast, run(), strict=True):
        assert (ours - looped).abs().max() <= 1e-5 * looped.abs().max()
    if skewed:
        assert torch.bincount(moe.router(x).experts.flatten(), minlength=8)[4:].sum() == 0
        assert (moe.experts.up_proj.grad[4:] == 0).all()


def test_sizes_that_the_kernel_refuses_are_looped():
    x, weight = torch.randn(7, 6), torch.randn(3, 5, 6)
    assert not grouped_mm_serves(x, weight)
    ends = torch.tensor([2, 2, 7], dtype=torch.int32)
    expected = torch.cat([x[:2] @ weight[0].T, x[2:] @ weight[2].T])
    torch.testing.assert_close(grouped_linear(x, weight, ends), expected)
    torch.testing.assert_close(looped_linear(x, weight, ends), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    x, weight = torch.randn(9, 8, dtype=dtype, requires_grad=True), torch.randn(3, 16, 8, dtype=dtype)
    ends = torch.tensor([4, 4, 9], dtype=torch.int32)
    y = grouped_linear(x, weight, ends)
    y.backward(torch.randn_like(y))
    torch.testing.assert_close(y, looped_linear(x, weight, ends))
    assert x.grad.isfinite().all()


def test_autocast_computes_experts_narrow_and_routes_wide():
    moe = randomized(MixtureOfExperts(small()))
    x = torch.randn(2, 12, 16)
    with torch.autocast("cpu", torch.bfloat16):
        routes = moe.router(x)
        y = moe(x)
    assert routes.logits.dtype == torch.float32
    assert torch.equal(routes.experts, moe.router(x).experts)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, moe(x), rtol=0.05, atol=0.05)


def test_nothing_is_dropped_when_all_tokens_want_one_expert():
    config = small({"num_experts_per_tok": 1, "norm_topk_prob": True}, mlp="gelu", bias=False)
    moe = randomized(MixtureOfExperts(config))
    moe.router.weight.data.zero_()  # all tie: one expert takes all 600 tokens
    x = torch.randn(50, 12, 16)
    only = moe.router(x).experts.unique().item()
    expected = F.gelu(x @ moe.experts.up_proj[only].T) @ moe.experts.down_proj[only].T
    torch.testing.assert_close(moe(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["swiglu", "swiglu_clamped", "geglu", "relu2"])
def test_gates_written_out_are_the_formulas_and_their_gradients(kind):
    gate, up = (4 * torch.randn(30, 6, dtype=torch.float64, requires_grad=True) for _ in "gu")
    weight = torch.rand(30, 1, dtype=torch.float64, requires_grad=True)
    gated = kind in GATES
    expected = (GATES[kind](gate, up) if gated else ACTIVATIONS[kind](up)) * weight
    direction = torch.randn_like(expected)
    inputs = [gate, up, weight] if gated else [up, weight]
    gradients = torch.autograd.grad(expected, inputs, direction)
    found = weighted_hidden(kind, gate if gated else None, up, weight)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, inputs, direction), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_order_is_a_permutation_sorted_by_expert():
    chosen = torch.stack([torch.randperm(7)[:3] for _ in range(40)])
    order = sort_by_expert(chosen, 7)
    assert (order.expert.diff() >= 0).all()
    assert torch.equal(chosen.flatten()[order.row], order.expert)
    assert torch.equal(order.row[order.position.flatten()], torch.arange(120))
    assert torch.equal(order.ends.long(), torch.bincount(chosen.flatten(), minlength=7).cumsum(0))


# ---- routing, a token at a time ------------------------------------------------------------------------------------


def route_by_hand(router, x):
    """One token (C,) → its experts and weights, as DeepSeek-V3's equations 12 to 16 and its groups say."""
    moe = router.moe
    logits = router.weight.double() @ x.double() + (0 if router.bias is None else router.bias.double())
    scores = logits.softmax(0) if moe.scores == "softmax" else logits.sigmoid()
    biased = scores + (0 if router.selection_bias is None else router.selection_bias.double())
    per_group = moe.num_experts // moe.n_group
    members = [list(range(g * per_group, (g + 1) * per_group)) for g in range(moe.n_group)]
    if moe.n_group > 1:
        best = sorted(members, key=lambda m: -sum(sorted((biased[e].item() for e in m), reverse=True)[:2]))
        members = best[: moe.topk_group]
    allowed = [e for group in members for e in group]
    chosen = sorted(allowed, key=lambda e: -biased[e].item())[: moe.num_experts_per_tok]
    weights = scores[chosen]
    if moe.norm_topk_prob:
        weights = weights / weights.sum()
    return chosen, weights * moe.routed_scaling_factor


@pytest.mark.parametrize(
    "moe",
    [
        pytest.param({}, id="mixtral"),
        pytest.param({"norm_topk_prob": False}, id="raw softmax"),
        pytest.param({"router_bias": True}, id="router bias"),
        pytest.param({"scores": "sigmoid", "selection_bias": True, "routed_scaling_factor": 2.5}, id="biased sigmoid"),
        pytest.param(
            {"num_experts": 8, "n_group": 4, "topk_group": 2, "scores": "sigmoid", "selection_bias": True}, id="groups"
        ),
        pytest.param({"num_experts": 8, "n_group": 2, "topk_group": 1}, id="softmax groups"),
    ],
)
def test_router_is_the_equations(moe):
    router = randomized(Router(small(moe)))
    if router.selection_bias is not None:
        router.selection_bias.normal_(0, 0.5)
    x = torch.randn(30, 16)
    routes = router(x)
    for token, experts, weights in zip(x, routes.experts, routes.weights, strict=True):
        chosen, expected = route_by_hand(router, token)
        assert experts.tolist() == chosen
        torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)


def test_selection_bias_moves_the_choice_and_not_the_weights():
    router = randomized(Router(small({"scores": "sigmoid", "selection_bias": True, "norm_topk_prob": False})))
    x = torch.randn(50, 16)
    router.selection_bias[3] = 10
    routes = router(x)
    assert (routes.experts == 3).any(-1).all()
    torch.testing.assert_close(routes.weights, routes.scores.gather(-1, routes.experts))
    assert not routes.experts.requires_grad


def test_selection_bias_keeps_its_precision():
    model = GPT(small({"selection_bias": True}))
    bias = model.blocks[0].mlp.router.selection_bias
    bias.fill_(0.001 + 2**-20)
    model.to(torch.bfloat16)
    assert model.blocks[0].mlp.router.selection_bias.dtype == torch.float32
    assert (model.blocks[0].mlp.router.selection_bias == torch.tensor(0.001 + 2**-20)).all()
    assert "blocks.0.mlp.router.selection_bias" in model.state_dict()
    assert model.blocks[0].mlp.router.weight.dtype == torch.bfloat16


def test_selection_bias_is_wide_whatever_the_default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        router = GPT(small({"selection_bias": True})).blocks[0].mlp.router
    finally:
        torch.set_default_dtype(torch.float32)
    assert router.weight.dtype == torch.bfloat16
    assert router.selection_bias.dtype == torch.float32


def test_leaving_the_meta_device_zeroes_selection_biases():
    with torch.device("meta"):
        model = GPT(small({"selection_bias": True}))
    model.to_empty(device="cpu").init_weights(0)
    assert (model.blocks[1].mlp.router.selection_bias == 0).all()


# ---- the record ----------------------------------------------------------------------------------------------------


def test_record_counts_real_tokens_by_row():
    config = small({"balance_loss_weight": 0.1, "z_loss_weight": 0.1, "scores": "sigmoid"})
    moe = randomized(MixtureOfExperts(config, layer=4))
    x = torch.randn(2, 12, 16)
    documents = torch.zeros(2, 12, dtype=torch.int64)
    documents[1, 7:] = -1
    routing = Routing(documents)
    moe(x, Context(routing=routing))
    record, routes = routing.layers[4], moe.router(x)
    for row, length in ((0, 12), (1, 7)):
        assert torch.equal(record.counts[row], torch.bincount(routes.experts[row, :length].flatten(), minlength=6))
        shares = routes.scores[row, :length] / routes.scores[row, :length].sum(-1, keepdim=True)
        torch.testing.assert_close(record.scores[row], shares.sum(0))
        squares = routes.logits[row, :length].logsumexp(-1).square().sum()
        torch.testing.assert_close(record.squared_log_z[row], squares)
    assert routing.num_tokens.tolist() == [12, 7]


def test_record_has_what_the_losses_need_and_no_more():
    routing = Routing()
    MixtureOfExperts(small({"balance_loss_weight": 0.1}))(torch.randn(2, 12, 16), Context(routing=routing))
    assert routing.layers[0].scores is not None
    assert routing.layers[0].squared_log_z is None
    assert routing.num_tokens == 12


def test_checkpointed_blocks_record_once_and_give_the_same_gradients():
    from lit_gpt.objectives import routing_loss

    model = GPT(small({"balance_loss_weight": 0.1, "z_loss_weight": 0.1, "layers": (False, True)}, n_layer=4))
    ids = torch.randint(31, (2, 12))
    gradients = []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        model.zero_grad()
        routing = Routing()
        logits = model(ids, routing=routing)
        assert list(routing.layers) == [1, 3]
        before = routing.layers[3].counts
        (logits.square().mean() + routing_loss(routing, model.config.moe, torch.ones(2))).backward()
        assert routing.layers[3].counts is before
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-6, atol=1e-9)


# ---- under an optimizer --------------------------------------------------------------------------------------------


def test_stacked_biases_are_vectors_and_stacked_matrices_are_matrices():
    model = GPT(small(mlp_bias=True, bias=True))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["name"]: {names[id(p)] for p in group["params"]} for group in parameter_groups(model)}
    mlp = "blocks.0.mlp."
    assert {f"{mlp}experts.{name}_bias" for name in ("gate", "up", "down")} <= groups["vectors"]
    assert {f"{mlp}experts.{name}_proj" for name in ("gate", "up", "down")} | {f"{mlp}router.weight"} <= groups[
        "matrices"
    ]


def test_muon_treats_every_expert_as_a_matrix_of_its_own():
    stacked = torch.nn.Parameter(torch.randn(3, 6, 4))
    apart = [torch.nn.Parameter(matrix.detach().clone()) for matrix in stacked]
    gradient = torch.randn(3, 6, 4)
    stacked.grad = gradient.clone()
    for matrix, part in zip(apart, gradient, strict=True):
        matrix.grad = part.clone()
    for parameters in ([stacked], apart):
        MuonAdamW([{"name": "matrices", "params": parameters}], lr=0.1).step()
    torch.testing.assert_close(stacked, torch.stack(list(apart)))
