import torch

from lit_gpt.models import GPT, GPTConfig


def test_parameters_of_every_variant(small_config):
    with torch.device("meta"):
        model = GPT(small_config)
    assert sum(parameter.numel() for parameter in model.parameters()) == small_config.num_parameters()


def test_flops_by_hand():
    # One layer, width 8, MLP 32, vocabulary 10, no biases: attention 4 * 64, MLP 2 * 256, norms 3 * 8, head 80.
    config = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=16, vocab_size=10, bias=False)
    n = 256 + 512 + 24 + 80
    assert config.num_parameters(embeddings=False) == n
    assert config.num_parameters() == n + 16 * 8
    assert config.flops_per_token(16) == 6 * n + 12 * 1 * 8 * 16
    assert config.flops_per_token() == config.flops_per_token(16)
    assert config.flops_per_token(16, causal=True) == 6 * n + 6 * 1 * 8 * 16


def test_a_window_bounds_the_flops_of_its_layers_alone():
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 10}
    full = GPTConfig(**shape)
    half = GPTConfig(**shape, sliding_window=4, layer_windows=(True, False))
    assert full.flops_per_token(16) - half.flops_per_token(16) == 12 * 8 * (16 - 4)
    assert full.flops_per_token(3) == half.flops_per_token(3)


def test_matrix_products_of_a_forward_are_a_third_of_the_count():
    # Counted by torch itself: 2 FLOPs a multiply-add, forward only; 6 N + 12 L C T is three times that.
    from torch.utils.flop_counter import FlopCounterMode

    config = GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=128, bias=False)
    model, T = GPT(config), 32
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(torch.zeros(1, T, dtype=torch.int64))
    norms = 64 * (2 * config.n_layer + 1)
    assert 3 * counter.get_total_flops() == T * (config.flops_per_token(T) - 6 * norms)
