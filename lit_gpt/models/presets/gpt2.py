"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2).

Everything but the four sizes from the released `hparams.json` and the `config.json` of huggingface.co/openai-community:
vocabulary 50257, context 1024, LayerNorm eps 1e-5, GELU by tanh, biases, tied head. Dropout is 0, not their 0.1: a
corpus seen about once needs none (as nanoGPT's reproduction has it). Initialisation: section 2.3 of the paper.
"""

from dataclasses import replace

from lit_gpt.models.config import GPTConfig

_GPT2 = GPTConfig(vocab_size=50257, block_size=1024, norm_eps=1e-5, mlp="gelu_tanh", bias=True, family="gpt2")

PRESETS: dict[str, GPTConfig] = {
    "gpt2": replace(_GPT2, n_layer=12, n_head=12, n_embd=768),  # 124M
    "gpt2-medium": replace(_GPT2, n_layer=24, n_head=16, n_embd=1024),  # 355M
    "gpt2-large": replace(_GPT2, n_layer=36, n_head=20, n_embd=1280),  # 774M
    "gpt2-xl": replace(_GPT2, n_layer=48, n_head=25, n_embd=1600),  # 1.5B
}

# Sizes on huggingface.co/openai-community, without the masks that their files carry.
PUBLISHED: dict[str, int] = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
