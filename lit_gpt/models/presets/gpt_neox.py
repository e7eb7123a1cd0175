"""GPT-NeoX-20B (Black et al. 2022, arXiv:2204.06745) and Pythia (Biderman et al. 2023, arXiv:2304.01373).

From table 1 of both papers and the `config.json` of huggingface.co/EleutherAI. All: parallel residual, a quarter of
each head rotated, context 2048, LayerNorm eps 1e-5, biases, untied head. The vocabulary is the tokenizer's 50277
padded for the devices that each size was trained on. Initialisation as transformers has it; the papers drew
projections into the residual stream smaller (GPT-NeoX-20B, section 2.1), which no config.json records.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig

_PYTHIA = GPTConfig(
    vocab_size=50304,
    block_size=2048,
    norm_eps=1e-5,
    bias=True,
    parallel_residual=True,
    positions="rope",
    rope_theta=10000.0,
    rope_fraction=0.25,
    mlp="gelu",
    tie_embeddings=False,
    scale_residual_init=False,
    family="gpt_neox",
)

PRESETS: dict[str, GPTConfig] = {
    "pythia-70m": replace(_PYTHIA, n_layer=6, n_head=8, n_embd=512),
    "pythia-160m": replace(_PYTHIA, n_layer=12, n_head=12, n_embd=768),
    "pythia-410m": replace(_PYTHIA, n_layer=24, n_head=16, n_embd=1024),
    "pythia-1b": replace(_PYTHIA, n_layer=16, n_head=8, n_embd=2048),
    "pythia-1.4b": replace(_PYTHIA, n_layer=24, n_head=16, n_embd=2048),
    "pythia-2.8b": replace(_PYTHIA, n_layer=32, n_head=32, n_embd=2560),
    "pythia-6.9b": replace(_PYTHIA, n_layer=32, n_head=32, n_embd=4096, vocab_size=50432),
    "pythia-12b": replace(_PYTHIA, n_layer=36, n_head=40, n_embd=5120, vocab_size=50688),
    "gpt-neox-20b": replace(_PYTHIA, n_layer=44, n_head=64, n_embd=6144, vocab_size=50432, mlp="gelu_tanh"),
}

# "Total params" in the README of github.com/EleutherAI/pythia; the last from the paper's section 2.1.
PUBLISHED: dict[str, int] = {
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
}
