"""Fixtures that tests of several packages share."""

import os
import tempfile
from collections.abc import Iterator

# Choices of kernels that are measured here must not be kept for the user.
os.environ["LIT_GPT_KERNELS"] = os.path.join(tempfile.gettempdir(), f"lit_gpt-tests-{os.getpid()}.json")
# The models here are too small for a second thread to help, and threads of several processes get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

from lit_gpt.models import GPTConfig, MLAConfig, MoEConfig, RopeScaling

LAUNCHER = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 32, "vocab_size": 61}
MODERN = {"norm": "rmsnorm", "bias": False, "positions": "rope", "mlp": "swiglu", "intermediate_size": 48}
VARIANTS = {
    "textbook": {},
    "untied without biases": {"bias": False, "tie_embeddings": False, "mlp": "relu2"},
    "grouped queries": MODERN | {"n_kv_head": 2, "qk_norm": "head", "head_size": 12},
    "multi-query, biased attention": MODERN | {"n_kv_head": 1, "attention_bias": True},
    "every layer slides": MODERN | {"sliding_window": 5},
    "some layers slide": {"sliding_window": 4, "layer_windows": (True, False, True)},
    "scaled rope": MODERN | {"rope_scaling": RopeScaling("llama3", 4.0, 16, 1.0, 4.0), "tie_embeddings": False},
    "alibi, parallel halves": {"positions": "alibi", "parallel_residual": True, "mlp": "gelu_tanh"},
    "sinusoids, norms after the sum": {"positions": "sinusoidal", "norm_placement": "post"},
    "sandwich, soft-caps, local base": MODERN
    | {
        "norm_placement": "sandwich",
        "norm_offset": True,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
        "embedding_scale": 5.5,
        "sliding_window": 5,
        "layer_windows": (True, False),
        "rope_local_theta": 100.0,
        "mlp": "geglu_tanh",
    },
    "sinks, chunks, part of the head rotated": MODERN
    | {
        "attention_sinks": True,
        "sliding_window": 6,
        "chunked_window": True,
        "layer_windows": (True, True, False),
        "rope_layers": (True, True, False),
        "rope_fraction": 0.5,
        "n_kv_head": 2,
    },
    "norms of outputs and whole projections, scales": MODERN
    | {
        "norm_placement": "output",
        "qk_norm": "projection",
        "residual_scale": 0.5,
        "logit_scale": 0.25,
        "attention_scale": 0.3,
        "attention_out_bias": True,
    },
    "experts": MODERN
    | {
        "moe": MoEConfig(6, 2, intermediate_size=16, shared_intermediate_size=12, layers=(False, True, True)),
        "mlp_bias": True,
        "positions": "none",
    },
    "latent attention, grouped experts": MODERN
    | {
        "mla": MLAConfig(12, 20, 8, 4, 8),
        "moe": MoEConfig(8, 3, 16, scores="sigmoid", n_group=4, topk_group=2, selection_bias=True),
    },
}
# Frequencies that follow the text's length, which is not causal beyond the original context: `transformers` has it so.
LENGTHENED = {
    "dynamic rope": MODERN | {"rope_scaling": RopeScaling("dynamic", 4.0, 10), "rope_theta": 100.0},
    "longrope": MODERN
    | {"rope_scaling": RopeScaling("longrope", 4.0, 10, short_factors=(1.0,) * 4, long_factors=(1.5, 2.0, 3.0, 4.0))},
    "longrope, local base": MODERN
    | {
        "rope_scaling": RopeScaling("longrope", 4.0, 10, short_factors=(1.0,) * 4, long_factors=(1.5, 2.0, 3.0, 4.0)),
        "sliding_window": 5,
        "layer_windows": (True, False),
        "rope_local_theta": 100.0,
    },
}


def pytest_sessionfinish() -> None:
    """Remove the choices of kernels that were measured."""
    Path(os.environ["LIT_GPT_KERNELS"]).unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_launcher() -> Iterator[None]:
    """A test leaves no variables of a launcher: Lightning sets them where it starts processes in the test's own."""
    before = {name: os.environ.get(name) for name in LAUNCHER}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def small_config(request) -> GPTConfig:
    """A three-layer model in every combination of parts that the package names."""
    return GPTConfig(**SMALL | request.param)


@pytest.fixture(params=(VARIANTS | LENGTHENED).values(), ids=VARIANTS | LENGTHENED)
def packable_config(request) -> GPTConfig:
    """The same, and models that rotate by the length of the text."""
    return GPTConfig(**SMALL | request.param)
