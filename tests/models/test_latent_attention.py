"""Latent attention against the paper's equations, and its two forms against each other."""

import pytest
import torch

from lit_gpt.models import GPT, Cache, Context, GPTConfig, MLAConfig, RopeScaling
from lit_gpt.models.latent_attention import LatentAttention
from lit_gpt.models.positions import Rotations, rope_rotation

YARN = RopeScaling("yarn", 4.0, 16, mscale=1.0, mscale_all_dim=0.7)


def small(mla=None, **changes):
    mla = MLAConfig(**{"kv_lora_rank": 12, "q_lora_rank": 10, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6} | (mla or {}))  # fmt: skip
    shape = {"n_layer": 2, "n_head": 3, "n_embd": 24, "vocab_size": 31, "block_size": 64, "norm": "rmsnorm", "bias": False}  # fmt: skip
    return GPTConfig(**shape | {"positions": "rope", "mlp": "swiglu", "mla": mla} | changes)


def randomized(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4)
    return module


def rms(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def rotate(x, position, theta=10000.0):
    """(R,) by its position, pairs (i, i + R/2)."""
    half = len(x) // 2
    angle = position * theta ** (-2 * torch.arange(half, dtype=torch.float64) / len(x))
    a, b = x[:half], x[half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()))


@torch.no_grad()
def by_hand(attention, x):
    """DeepSeek-V2, equations 9 to 19, a token and a head at a time: x (T, C) float64 → (T, C)."""
    mla, T = attention.mla, len(x)
    H, D, R, V = attention.num_heads, mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim
    latent, shared = attention.kv_a_proj(x).split((mla.kv_lora_rank, R), dim=-1)
    latent = rms(latent, attention.kv_a_norm.weight)
    if attention.q_proj is not None:
        queries = attention.q_proj(x)
    else:
        queries = attention.q_b_proj(rms(attention.q_a_proj(x), attention.q_a_norm.weight))
    unfold = attention.kv_b_proj.weight.view(H, D + V, -1)
    rows = []
    for t in range(T):
        heads = []
        for h in range(H):
            q = queries[t].view(H, D + R)[h]
            q = torch.cat((q[:D], rotate(q[D:], t)))
            keys = [torch.cat((unfold[h, :D] @ latent[s], rotate(shared[s], s))) for s in range(t + 1)]
            scores = torch.stack([q @ k for k in keys]) / (D + R) ** 0.5
            values = torch.stack([unfold[h, D:] @ latent[s] for s in range(t + 1)])
            heads.append(scores.softmax(0) @ values)
        rows.append(attention.o_proj(torch.cat(heads)))
    return torch.stack(rows)


@pytest.mark.parametrize(
    "mla", [{}, {"q_lora_rank": None}, {"v_head_dim": 16}], ids=["low-rank", "full", "wide values"]
)
def test_it_is_the_papers_equations(mla):
    attention = randomized(LatentAttention(small(mla), 0)).double()
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    rotation = rope_rotation(small(mla), torch.arange(9))
    y = attention(x, Context(torch.arange(9), rotations=Rotations(rotation, rotation)))
    expected = torch.stack([by_hand(attention, row) for row in x])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)  # the rotations are float32


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"rope_scaling": YARN}], ids=["plain", "yarn"])
@pytest.mark.parametrize("masked", [False, True])
def test_absorbed_is_expanded(changes, masked):
    attention = randomized(LatentAttention(small(**changes), 0))
    T, S = (3, 20) if masked else (1, 20)
    q, q_rotated = torch.randn(2, T, 3, 8), torch.randn(2, T, 3, 4)
    latent, k_rotated = torch.randn(2, S, 12), torch.randn(2, S, 4)
    mask = torch.ones(T, S, dtype=torch.bool).tril(S - T)[None, None] if masked else None
    absorbed = attention.absorbed(q, q_rotated, latent, k_rotated, mask)
    expanded = attention.expanded(q, q_rotated, latent, k_rotated, mask)
    torch.testing.assert_close(absorbed, expanded, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_decoding_absorbs_and_prompts_unfold(monkeypatch):
    model = randomized(GPT(small(rope_scaling=YARN))).eval()
    ids = torch.randint(31, (2, 40))
    expected = model(ids)
    calls = []
    for name in ("absorbed", "expanded"):
        method = getattr(LatentAttention, name)
        monkeypatch.setattr(
            LatentAttention,
            name,
            lambda self, q, *rest, name=name, method=method: calls.append((name, q.shape[1])) or method(self, q, *rest),
        )
    cache, found = Cache(model, 2, 40), []
    for start, end in ((0, 10), (10, 11), (11, 12), (12, 14), (14, 40)):
        found.append(model(ids[:, start:end], cache=cache.step(end - start)))
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-4)
    assert calls[::2] == [("expanded", 10), ("absorbed", 1), ("absorbed", 1), ("absorbed", 2), ("expanded", 26)]


@torch.no_grad()
def test_the_cache_holds_latents_alone():
    model = GPT(small()).eval()
    cache = Cache(model, 2, 16)
    model(torch.randint(31, (2, 5)), cache=cache.step(5))
    latent, key = cache.states[1].tensors
    assert latent.shape == (2, 1, 16, 12)
    assert key.shape == (2, 1, 16, 4)


def test_absorbing_pays_until_the_queries_outnumber_the_unfolding():
    attention = LatentAttention.__new__(LatentAttention)
    attention.mla = MLAConfig()  # DeepSeek-V3's
    assert attention._absorbing_is_cheaper(1, 4096)
    assert attention._absorbing_is_cheaper(128, 4096)
    assert not attention._absorbing_is_cheaper(256, 4096)


def test_norms_of_latents_keep_their_epsilon():
    attention = LatentAttention(small(norm_eps=1e-5), 0)
    assert attention.kv_a_norm.eps == attention.q_a_norm.eps == 1e-6


def test_autocast_is_near_float32():
    model = randomized(GPT(small()))
    ids = torch.randint(31, (2, 12))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(ids)
        narrow.sum().backward()
    wide = model(ids)
    assert (narrow - wide).abs().max() < 0.1 * wide.abs().max()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
