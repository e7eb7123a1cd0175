"""Routers' losses and measures against the papers' equations in loops, and in short trainings."""

import math

import pytest
import torch

from lit_gpt.models import Context, GPTConfig, MoEConfig
from lit_gpt.models.moe import MixtureOfExperts, Routing
from lit_gpt.objectives import expert_loads, load_measures, move_selection_bias, routing_loss


def mixture(**moe):
    moe = MoEConfig(**{"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 8} | moe)
    return MixtureOfExperts(GPTConfig(n_layer=1, n_head=1, n_embd=16, mlp="swiglu", bias=False, moe=moe))


def recorded(module, x, document_ids=None):
    routing = Routing(document_ids)
    module(x, Context(routing=routing))
    return routing


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_balance_and_z_loss_are_the_equations(scores):
    module = mixture(scores=scores, balance_loss_weight=0.3, z_loss_weight=0.2)
    module.router.weight.data.normal_(0, 1)
    x, weights = torch.randn(2, 12, 16), torch.tensor([5, 9])
    documents = torch.zeros(2, 12, dtype=torch.int64)
    documents[1, 8:] = -1
    found = routing_loss(recorded(module, x, documents), module.moe, weights)

    routes, expected = module.router(x), 0.0
    for row, length in ((0, 12), (1, 8)):
        balance = 0.0
        for i in range(8):
            f = 8 / (2 * length) * sum(int(i in routes.experts[row, t]) for t in range(length))
            p = sum(routes.scores[row, t, i] / routes.scores[row, t].sum() for t in range(length)) / length
            balance += f * p
        z = sum(math.log(sum(math.exp(v) for v in routes.logits[row, t])) ** 2 for t in range(length)) / length
        expected += weights[row] * (0.3 * balance + 0.2 * z)
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32), rtol=1e-5, atol=0)


def test_even_routing_costs_one_and_collapsed_routing_most():
    moe = MoEConfig(num_experts=8, num_experts_per_tok=2, balance_loss_weight=1.0)
    even, collapsed = Routing(), Routing()
    chosen = torch.arange(16).view(1, 8, 2) % 8
    logits = torch.zeros(1, 8, 8)
    even.record(0, chosen, logits, logits.softmax(-1), True, False)
    sure = torch.tensor([30.0, 30] + [0] * 6).expand(1, 8, 8)
    collapsed.record(0, torch.tensor([0, 1]).expand(1, 8, 2), sure, sure.softmax(-1), True, False)
    one = torch.ones(1)
    assert routing_loss(even, moe, one).item() == pytest.approx(1.0)
    assert routing_loss(collapsed, moe, one).item() == pytest.approx(4.0)  # E / k


def test_rows_apart_sum_to_rows_together():
    module = mixture(balance_loss_weight=0.3, z_loss_weight=0.2)
    module.router.weight.data.normal_(0, 1)
    x, weights = torch.randn(4, 12, 16), torch.tensor([3, 12, 0, 7])
    whole = routing_loss(recorded(module, x), module.moe, weights)
    parts = [routing_loss(recorded(module, x[i : i + 1]), module.moe, weights[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(whole, sum(parts))


def test_loads_and_measures_by_hand():
    routings = []
    for experts in ([0, 0, 1, 3], [0, 2, 1, 3]):
        routing = Routing()
        logits = torch.zeros(1, 4, 4)
        routing.record(5, torch.tensor(experts).view(1, 4, 1), logits, logits.softmax(-1), False, False)
        routings.append(routing)
    loads = expert_loads(routings)
    assert loads[5].tolist() == [3, 2, 1, 2]
    measures = load_measures(torch.tensor([[3.0, 2, 1, 2], [2, 2, 2, 2]]))
    shares = [3 / 8, 2 / 8, 1 / 8, 2 / 8]
    entropy = -sum(p * math.log(p) for p in shares) / math.log(4)
    assert measures["max_load"] == pytest.approx((1.5 + 1) / 2)
    assert measures["max_load_worst"] == pytest.approx(1.5)
    assert measures["entropy"] == pytest.approx((entropy + 1) / 2)


def test_selection_biases_move_by_the_sign_of_the_imbalance():
    bias = torch.tensor([0.1, 0.0, -0.1, 0.0])
    move_selection_bias(bias, torch.tensor([30.0, 10, 0, 0]), rate=0.01)
    torch.testing.assert_close(bias, torch.tensor([0.09, 0.0, -0.09, 0.01]))


def skewed(**moe):
    """A router that sends nearly all tokens to experts 0 and 1, and the tokens."""
    module = mixture(**moe)
    x = torch.randn(4, 64, 16) + 1.0
    module.router.weight.data.normal_(0, 0.05)
    module.router.weight.data[:2] += 0.3
    before = load_measures(expert_loads([recorded(module, x)])[0][None])
    assert before["max_load"] > 3.5  # 4 = E / k is collapse
    return module, x


def test_the_balance_loss_pulls_a_skewed_router_to_uniform():
    module, x = skewed(balance_loss_weight=1.0)
    target = torch.randn(4, 64, 16)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(150):
        routing = Routing()
        error = (module(x, Context(routing=routing)) - target).square().mean()
        loss = error + routing_loss(routing, module.moe, torch.ones(4)) / 4
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = load_measures(expert_loads([recorded(module, x)])[0][None])
    assert after["max_load"] < 1.25
    assert after["entropy"] > 0.99
    assert loss.item() - error.item() == pytest.approx(1.0, abs=0.02)


def test_selection_biases_alone_even_out_a_skewed_router():
    module, x = skewed(scores="sigmoid", selection_bias=True, bias_update_rate=0.002)
    weight = module.router.weight.clone()
    with torch.no_grad():
        for _ in range(500):
            load = expert_loads([recorded(module, x)])[0]
            move_selection_bias(module.router.selection_bias, load, module.moe.bias_update_rate)
    after = load_measures(expert_loads([recorded(module, x)])[0][None])
    assert after["max_load"] < 1.4  # a step moves every expert, so loads go on swinging a little
    assert after["entropy"] > 0.99
    assert torch.equal(module.router.weight, weight)
