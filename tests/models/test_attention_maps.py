import torch

from lit_gpt.models import GPT
from lit_gpt.models.attention_maps import attention_maps


def test_maps_are_the_weights_the_model_uses(small_config):
    model = GPT(small_config)
    ids = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))
    seen = []
    hook = model.blocks[1].attn.register_forward_hook(lambda _, args, y: seen.append((args, y)))
    maps = attention_maps(model, ids)
    hook.remove()
    assert maps.shape == (3, 2, 4, 12, 12)
    totals = maps.sum(-1)
    if small_config.attention_sinks:
        assert (totals < 1).all(), "a sink takes its share"
    else:
        torch.testing.assert_close(totals, torch.ones(3, 2, 4, 12))
    assert (maps.triu(1) == 0).all()
    (x, *_), expected = seen[0]
    attention = model.blocks[1].attn
    v = attention.project(x)[2].transpose(1, 2)
    v = v.repeat_interleave(4 // v.shape[1], dim=1)
    torch.testing.assert_close(
        attention.o_proj((maps[1] @ v).transpose(1, 2).flatten(2)), expected, rtol=1e-4, atol=1e-6
    )


def test_model_is_left_as_it_was(small_config):
    model = GPT(small_config)
    attention_maps(model, torch.zeros(1, 4, dtype=torch.int64))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
