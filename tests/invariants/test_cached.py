import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.models import GPT, KVCache

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("chunks", [[20, 1, 1, 1, 1], [1] * 24, [7, 9, 8], [24]])
@torch.no_grad()
def test_cached_equals_uncached(small_config, chunks):
    model = GPT(small_config)
    x = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(0))
    cache, parts, start = KVCache(24), [], 0
    for size in chunks:
        parts.append(model(x[:, start : start + size], cache=cache))
        start += size
        assert cache.length == start
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x), **TOLERANCE)


@torch.no_grad()
def test_truncated_cache_forgets(small_config):
    model = GPT(small_config)
    x = torch.randint(61, (1, 12), generator=torch.Generator().manual_seed(0))
    cache = KVCache(32)
    model(x.flip(1), cache=cache)
    cache.truncate(0)
    model(x[:, :10], cache=cache)
    model(x[:, :2], cache=cache)
    cache.truncate(10)
    torch.testing.assert_close(model(x[:, 10:], cache=cache), model(x)[:, 10:], **TOLERANCE)


@torch.no_grad()
def test_cache_may_not_outgrow_the_block(small_config):
    model, cache = GPT(small_config), KVCache(40)
    model(torch.zeros(1, 32, dtype=torch.int64), cache=cache)
    with pytest.raises(UserError, match="33 tokens"):
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
