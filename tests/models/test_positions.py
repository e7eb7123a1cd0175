import pytest
import torch

from lit_gpt.models import GPTConfig, RopeScaling
from lit_gpt.models.positions import apply_rope, rope_frequencies, rope_rotation

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
