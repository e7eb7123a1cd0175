"""No token sees a later one."""

from dataclasses import replace

import pytest
import torch

from lit_gpt.models import GPT


@pytest.mark.parametrize("at", [0, 7, 15])
@torch.no_grad()
def test_a_changed_token_leaves_all_earlier_logits_as_they_were_to_the_bit(small_config, at):
    model = GPT(small_config)
    ids = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, at] = (ids[:, at] + 1) % 61
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :at], after[:, :at])
    assert (before[:, at:] != after[:, at:]).any(dim=-1)[:, 0].all(), "the changed token itself must matter"


def test_gradient_of_a_logit_reaches_no_later_embedding(small_config):
    model = GPT(small_config)
    reached = []
    model.drop.register_forward_hook(lambda _, __, x: (x.retain_grad(), reached.append(x))[0])
    ids = torch.randint(61, (1, 16), generator=torch.Generator().manual_seed(0))
    model(ids)[0, 9].sum().backward()
    gradient = reached[0].grad[0]
    assert (gradient[10:] == 0).all()
    assert (gradient[9] != 0).any()


@torch.no_grad()
def test_a_sliding_window_sees_exactly_its_width_through_one_layer(small_config):
    config = replace(small_config, n_layer=1, layer_windows=None, rope_layers=None, chunked_window=False, moe=None)
    model = GPT(config)
    ids = torch.randint(61, (1, 16), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[:, 2] = (ids[:, 2] + 1) % 61
    differs = (model(ids) != model(changed)).any(dim=-1)[0].tolist()
    width = config.sliding_window or 16
    assert differs == [2 <= place < 2 + width for place in range(16)]
