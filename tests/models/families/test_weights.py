"""Weight transforms: against loops, and undone bit for bit."""

import pytest
import torch

from lit_gpt.models.families.weights import Interleave, Permute, Split, Stack, Transpose, entry

H, D, C = 3, 4, 5


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_gpt_neox_interleaves_q_k_v_by_head():
    stored = numbers(H * 3 * D, C)
    q, k, v = Interleave(3, D).to_local([stored])
    for head in range(H):
        for row in range(D):
            assert q[head * D + row].equal(stored[head * 3 * D + row])
            assert k[head * D + row].equal(stored[head * 3 * D + D + row])
            assert v[head * D + row].equal(stored[head * 3 * D + 2 * D + row])


def test_gate_and_up_alternate_along_the_last_dimension():
    stored = numbers(2, C, 6)
    gate, up = Interleave(2, dim=-1).to_local([stored])
    assert gate.equal(stored[..., ::2])
    assert up.equal(stored[..., 1::2])


def test_interleaved_rope_pairs_become_halves():
    stored = numbers(6, C)
    (local,) = Permute((0, 2, 4, 1, 3, 5)).to_local([stored])
    assert local.equal(torch.cat((stored[::2], stored[1::2])))
    with pytest.raises(RuntimeError, match="7 rows"):
        Permute((0, 2, 4, 1, 3, 5)).to_local([numbers(7, C)])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("shapes", "transforms", "names"),
    [
        ([(C, 7)], [], ["a"]),
        ([(C, 7)], [Transpose()], ["a"]),
        ([(12, C)], [Split((6, 2, 4))], ["a", "b", "c"]),
        ([(C, 12)], [Transpose(), Split((8, 4))], ["a", "b"]),
        ([(2, C, 12)], [Split((5, 7), dim=-1)], ["a", "b"]),
        ([(H * 3 * D, C)], [Interleave(3, D)], ["a", "b", "c"]),
        ([(2, C, 12)], [Interleave(2, dim=-1), Transpose()], ["a", "b"]),
        ([(4, C)], [Permute((2, 0, 3, 1))], ["a"]),
        ([(3, 4)] * 5, [Stack()], ["a"]),
        ([(3, 4)] * 5, [Transpose(), Stack(), Split((1, 3), dim=1)], ["a", "b"]),
    ],
)
def test_every_chain_is_undone_exactly(shapes, transforms, names, device):
    stored = [numbers(*shape).to(device) + 0 for shape in shapes]
    table = entry([f"t{i}" for i in range(len(shapes))], names, *transforms)
    local = table.to_local(stored)
    assert list(local) == names
    again = table.to_file(local)
    assert list(again) == list(table.file)
    for one, other in zip(stored, again.values(), strict=True):
        assert one.shape == other.shape
        assert device == "meta" or one.equal(other)
