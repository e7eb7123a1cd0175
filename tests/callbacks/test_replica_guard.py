"""Weights that differ between replicas are found, and the process is named."""

import pytest
import torch

from lit_gpt.callbacks import ReplicaGuard
from lit_gpt.callbacks.replica_guard import CHUNK, _hash
from lit_gpt.errors import UserError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [1, 7, CHUNK + 3])
def test_every_bit_counts(dtype, size):
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = _hash(tensor)
    assert expected.equal(_hash(tensor.clone()))
    bits = tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
    for place in {0, size // 2, size - 1}:
        for bit in (0, 5, 8 * tensor.element_size() - 1):
            bits[place] ^= torch.ones((), dtype=bits.dtype) << bit
            assert not expected.equal(_hash(tensor)), (place, bit)
            bits[place] ^= torch.ones((), dtype=bits.dtype) << bit
    if size > 1 and not bits[0].equal(bits[-1]):
        tensor[[0, -1]] = tensor[[-1, 0]]
        assert not expected.equal(_hash(tensor)), "nor may values change places"


def test_a_number_of_steps_below_one_is_refused():
    with pytest.raises(UserError, match=r"every_n_steps.*0.*at least 1"):
        ReplicaGuard(every_n_steps=0)
