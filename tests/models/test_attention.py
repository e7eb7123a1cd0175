"""Attention against loops over batch, head, query and key."""

import math
from dataclasses import replace

import pytest
import torch

from lit_gpt.models import GPTConfig, SelfAttention
from lit_gpt.models.attention import Scoring, attend, attention_weights
from lit_gpt.models.masks import build_masks
from lit_gpt.models.positions import alibi_slopes

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2], [0, 0, 0, 0, 0, 0, -1, -1]])


def in_loops(q, k, v, sees, scale=None, softcap=None, slopes=None, sinks=None):
    """softmax(q · k / √D) v over the keys that `sees(b, i, j)` admits, with what models do to the scores."""
    B, H, T, D = q.shape
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            group = h // (H // k.shape[1])  # neighbouring query heads share a key/value head
            for i in range(T):
                keys = [j for j in range(T) if sees(b, i, j)]
                scores = [q[b, h, i] @ k[b, group, j] * (scale or 1 / math.sqrt(D)) for j in keys]
                if softcap is not None:
                    scores = [softcap * torch.tanh(score / softcap) for score in scores]
                if slopes is not None:
                    scores = [score - slopes[h] * (i - j) for score, j in zip(scores, keys, strict=True)]
                total = sum(score.exp() for score in scores) + (0 if sinks is None else sinks[h].exp())
                weights = [score.exp() / total for score in scores]
                out[b, h, i] = sum(w * v[b, group, j] for w, j in zip(weights, keys, strict=True))
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_attend(kv_heads, window, documents):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 8, 16, generator=generator) for heads in (4, kv_heads, kv_heads))
    config = GPTConfig(n_embd=64, n_head=4, n_kv_head=kv_heads, sliding_window=window)
    masks = build_masks(config, documents, 8, torch.device("cpu"))

    def sees(b, i, j):
        near = window is None or i - j < window
        return j <= i and near and (documents is None or documents[b, i] == documents[b, j])

    y = attend(q, k, v, masks.full if window is None else masks.sliding)
    torch.testing.assert_close(y, in_loops(q, k, v, sees), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["whole rows", "packed"])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("alibi", [False, True])
def test_changed_scores(documents, softcap, with_sinks, alibi):
    q, k, v = (torch.randn(2, heads, 8, 16) for heads in (4, 2, 2))
    q.requires_grad_()
    sinks = torch.randn(4, requires_grad=True) if with_sinks else None
    config = GPTConfig(
        n_embd=64,
        n_head=4,
        n_kv_head=2,
        positions="alibi" if alibi else "none",
        attention_softcap=softcap,
        attention_scale=0.4,
    )
    masks = build_masks(config, documents, 8, torch.device("cpu"))
    y = attend(q, k, v, masks.full, Scoring.of(config), sinks)

    def sees(b, i, j):
        return j <= i and (documents is None or documents[b, i] == documents[b, j])

    slopes = alibi_slopes(4) if alibi else None
    expected = in_loops(q, k, v, sees, 0.4, softcap, slopes, sinks)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    wanted = [q] if sinks is None else [q, sinks]
    direction = torch.randn_like(y)
    ours, theirs = (torch.autograd.grad((out * direction).sum(), wanted) for out in (y, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    weights = attention_weights(q, k, masks.full, Scoring.of(config), sinks)
    torch.testing.assert_close(weights @ v.repeat_interleave(2, dim=1), y, rtol=1e-5, atol=1e-6)


def test_heads_are_counted_from_the_projections():
    # Under tensor parallelism a device holds a slice of the heads: here the second half of each projection.
    torch.manual_seed(0)
    config = GPTConfig(n_embd=32, n_head=4, n_kv_head=2, bias=False)
    whole, half = SelfAttention(config, 0), SelfAttention(config, 0)
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = getattr(whole, name).weight
        getattr(half, name).weight = torch.nn.Parameter(weight.chunk(2)[1])
    x = torch.randn(1, 5, 32)
    for ours, full in zip(half.project(x), whole.project(x), strict=True):
        torch.testing.assert_close(ours, full.chunk(2, dim=2)[1])


def test_autocast_gives_the_kernel_one_dtype(small_config):
    if small_config.mla is not None:
        small_config = replace(small_config, mla=None)
    attention = SelfAttention(small_config, 0)
    x = torch.randn(1, 4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q, k, v = attention.project(x)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
