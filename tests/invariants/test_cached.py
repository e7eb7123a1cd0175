import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.models import GPT, Cache

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("chunks", [[20, 1, 1, 1, 1], [1] * 24, [7, 9, 8], [24]])
@torch.no_grad()
def test_cached_equals_uncached(small_config, chunks):
    model = GPT(small_config)
    x = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(0))
    cache, parts, start = Cache(model, 2, 24), [], 0
    for size in chunks:
        parts.append(model(x[:, start : start + size], cache=cache.step(size)))
        start += size
        assert cache.length == start
    torch.testing.assert_close(torch.cat(parts, dim=1), model(x), **TOLERANCE)


@torch.no_grad()
def test_truncated_cache_forgets(small_config):
    model = GPT(small_config)
    x = torch.randint(61, (1, 12), generator=torch.Generator().manual_seed(0))
    cache = Cache(model, 1, 32)
    model(x.flip(1), cache=cache.step(12))
    cache.truncate(0)
    model(x[:, :10], cache=cache.step(10))
    model(x[:, :2], cache=cache.step(2))
    cache.truncate(10)
    torch.testing.assert_close(model(x[:, 10:], cache=cache.step(2)), model(x)[:, 10:], **TOLERANCE)


@torch.no_grad()
def test_cache_may_not_outgrow_the_block(small_config):
    model = GPT(small_config)
    cache = Cache(model, 1)
    model(torch.zeros(1, 32, dtype=torch.int64), cache=cache.step(32))
    with pytest.raises(UserError, match="33 tokens.*32"):
        cache.step(1)
