"""Every preset can be had in small, with the parts of the original."""

import pytest
import torch

from lit_gpt.models import GPT, get_preset, preset_names
from lit_gpt.models.families.ladder import shrink


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_in_small(name):
    original = get_preset(name)
    small = shrink(original, n_embd=32, n_head=4, block_size=16, vocab_size=64)
    assert small.num_parameters() < 1_000_000
    kept = ("norm", "norm_placement", "positions", "mlp", "qk_norm", "attention_sinks", "family", "logit_softcap")
    assert all(getattr(small, field) == getattr(original, field) for field in kept)
    assert (small.moe is None, small.mla is None) == (original.moe is None, original.mla is None)
    if original.moe is not None:
        assert any(small.is_moe(layer) for layer in range(small.n_layer))
    assert (small.num_kv_heads < small.n_head) == (original.num_kv_heads < original.n_head)
    assert GPT(small)(torch.arange(16)[None]).isfinite().all()
