import math

import pytest
import torch

from lit_gpt.models import GPTConfig, RopeScaling
from lit_gpt.models.positions import (
    alibi_slopes,
    apply_rope,
    build_rotations,
    context_lengths,
    rope_frequencies,
    rope_rotation,
    sinusoids,
)

CONFIG = GPTConfig(n_embd=32, n_head=4, positions="rope")


def test_rotation_is_the_papers_complex_product():
    # RoFormer, equation 12, for the pairing (i, i + D/2): (x_i + i x_{i+D/2}) * exp(i m theta^(-2i/D)).
    x = torch.randn(2, 7, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2], [5, 6, 7, 8, 9, 30, 31]])
    rotated = apply_rope(x.float(), rope_rotation(CONFIG, positions))
    for i in range(4):
        z = torch.complex(x[..., i], x[..., i + 4])
        angle = positions[:, :, None].double() * 10000.0 ** (-2 * i / 8)
        z = z * torch.polar(torch.ones_like(angle), angle)
        torch.testing.assert_close(rotated[..., i], z.real.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rotated[..., i + 4], z.imag.float(), rtol=1e-5, atol=1e-5)


def test_scores_depend_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(at_q, at_k):
        a, b = (apply_rope(x, rope_rotation(CONFIG, torch.tensor([at]))) for x, at in ((q, at_q), (k, at_k)))
        return (a * b).sum().item()

    assert score(5, 2) == pytest.approx(score(105, 102), abs=1e-4)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-4)


def test_position_ids_without_a_batch_broadcast():
    x = torch.randn(3, 6, 2, 8)
    one, many = (rope_rotation(CONFIG, p) for p in (torch.arange(6), torch.arange(6).expand(3, 6)))
    assert one[0].shape == (1, 6, 1, 8)
    assert torch.equal(apply_rope(x, one), apply_rope(x, many))


def test_linear_scaling_divides_every_frequency():
    scaled = GPTConfig(n_embd=32, n_head=4, positions="rope", rope_scaling=RopeScaling("linear", 4.0))
    torch.testing.assert_close(rope_frequencies(scaled), rope_frequencies(CONFIG) / 4)


def test_rotation_runs_in_float32_even_for_bfloat16():
    x = torch.randn(1, 4, 2, 8, dtype=torch.bfloat16)
    assert apply_rope(x, rope_rotation(CONFIG, torch.arange(4))).dtype == torch.float32


def test_part_of_a_head_is_rotated():
    half = GPTConfig(n_embd=32, n_head=2, positions="rope", rope_fraction=0.5)  # 8 of 16 coordinates
    x = torch.randn(1, 5, 2, 16)
    rotated = apply_rope(x, rope_rotation(half, torch.arange(5)))
    assert torch.equal(rotated[..., 8:], x[..., 8:])
    assert torch.equal(rotated[..., :8], apply_rope(x[..., :8].contiguous(), rope_rotation(CONFIG, torch.arange(5))))


def test_layers_that_slide_have_a_base_of_their_own_and_no_scaling():
    config = GPTConfig(
        n_embd=32,
        n_head=4,
        positions="rope",
        sliding_window=4,
        rope_theta=1e6,
        rope_local_theta=10000.0,
        rope_scaling=RopeScaling("linear", 8.0),
    )
    rotations = build_rotations(config, torch.arange(9))
    torch.testing.assert_close(rotations.sliding.cos, rope_rotation(CONFIG, torch.arange(9)).cos)
    frequencies = 1e6 ** -(torch.arange(4) / 4) / 8
    torch.testing.assert_close(rotations.full.cos[0, 5, 0, :4], (5 * frequencies).cos())


def test_queries_grow_beyond_the_original_context():
    scaling = RopeScaling("linear", 1.0, original_block_size=4, query_scale_beta=0.1)
    config = GPTConfig(n_embd=32, n_head=4, positions="rope", rope_scaling=scaling)
    scale = rope_rotation(config, torch.tensor([0, 3, 4, 9])).query_scale.flatten()
    expected = torch.tensor([1.0, 1.0, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(3)])
    torch.testing.assert_close(scale, expected)


def test_dynamic_scaling_begins_beyond_the_original_context():
    scaling = RopeScaling("dynamic", 2.0, original_block_size=8)
    config = GPTConfig(n_embd=32, n_head=4, positions="rope", rope_scaling=scaling)
    torch.testing.assert_close(rope_frequencies(config, torch.arange(8)), rope_frequencies(CONFIG))
    base = 10000.0 * (2 * 12 / 8 - 1) ** (8 / 6)
    torch.testing.assert_close(rope_frequencies(config, torch.arange(12)), base ** -(torch.arange(4) / 4))


def test_every_text_has_its_own_length():
    config = GPTConfig(n_embd=32, n_head=4, positions="rope", rope_scaling=RopeScaling("dynamic", 2.0, 4))
    positions = torch.tensor([[0, 1, 2, 0, 1, 3, 0], [0, 0, 1, 2, 0, 3, 4]])
    documents = torch.tensor([[7, 7, 7, 2, 2, 7, -1], [-1, 900, 900, 900, -1, 900, 900]])  # in any order
    lengths = context_lengths(config, positions, documents)
    assert lengths.tolist() == [[4, 4, 4, 2, 2, 4, 1], [1, 5, 5, 5, 1, 5, 5]]
    assert context_lengths(config, torch.arange(7), documents).tolist()[0] == [6, 6, 6, 5, 5, 6, 7]
    assert context_lengths(config, positions, None).tolist() == [[4], [5]]
    assert context_lengths(config, torch.arange(7), None) is None
    assert context_lengths(CONFIG, positions, documents) is None


def test_sinusoids_are_the_papers():
    table = sinusoids(torch.arange(3), 6)
    for position in range(3):
        for i in range(3):  # arXiv:1706.03762, section 3.5
            angle = position / 10000 ** (2 * i / 6)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert sinusoids(torch.arange(3), 5).shape == (3, 5)


def test_alibi_slopes_are_the_papers():
    torch.testing.assert_close(alibi_slopes(8), torch.tensor([2.0**-i for i in range(1, 9)]))
    assert alibi_slopes(6).tolist() == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
