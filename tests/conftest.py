"""Fixtures that several rooms' tests share."""

import os

# The models here are too small for a second thread to help, and threads of several processes get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from lit_gpt.models import GPTConfig, RopeScaling

SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 32, "vocab_size": 61}
MODERN = {"norm": "rmsnorm", "bias": False, "positions": "rope", "mlp": "swiglu", "intermediate_size": 48}
VARIANTS = {
    "textbook": {},
    "untied without biases": {"bias": False, "tie_embeddings": False, "mlp": "relu2"},
    "grouped queries": MODERN | {"n_kv_head": 2, "qk_norm": True, "head_size": 12},
    "multi-query, biased attention": MODERN | {"n_kv_head": 1, "attention_bias": True},
    "every layer slides": MODERN | {"sliding_window": 5},
    "some layers slide": {"sliding_window": 4, "layer_windows": (True, False, True)},
    "scaled rope": MODERN | {"rope_scaling": RopeScaling("llama3", 4.0, 1.0, 4.0, 16), "tie_embeddings": False},
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def small_config(request) -> GPTConfig:
    """A three-layer model in every combination of parts that the package names."""
    return GPTConfig(**SMALL | request.param)
