"""The variants of every family: small transformers models that are compared with ours.

A family is added to the tests by a file `variants/<family>.py` with

- `SHAPE`: arguments of its transformers config, small, with a context of 64 tokens,
- `VARIANTS`: name → further arguments; every switch of the family in some variant.
"""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers

from lit_gpt.checkpoints.huggingface import import_hf
from lit_gpt.models import GPT
from lit_gpt.models.families import family_names, get_family

FOLDER = Path(__file__).parent / "variants"
LOGITS_TOLERANCE = 1e-5
"""Largest difference of logits in float32, relative to the largest logit."""
NUM_TOKENS = 48
"""Longer than every window and every original context of the variants."""


@cache
def variants_of(family: str) -> ModuleType:
    path = FOLDER / f"{family}.py"
    assert path.is_file(), f"family {family} has no variants to test: write tests/parity/variants/{family}.py"
    spec = importlib.util.spec_from_file_location(f"variants_{family}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def every_variant():
    """Parameters (family, variant) of all families that have a file; that all have one is a test of its own."""
    return [
        pytest.param(family, variant, id=f"{family}: {variant}")
        for family in family_names()
        if (FOLDER / f"{family}.py").is_file()
        for variant in variants_of(family).VARIANTS
    ]


def their_class(family: str) -> type[transformers.PreTrainedModel]:
    return getattr(transformers, get_family(family).architecture)


def build_theirs(family: str, variant: str) -> transformers.PreTrainedModel:
    """A transformers model whose every number is random, biases, norms and buffers too."""
    torch.manual_seed(0)
    module = variants_of(family)
    arguments = module.SHAPE | module.VARIANTS[variant]
    config = transformers.AutoConfig.for_model(get_family(family).model_type, **arguments)
    config._experts_implementation = "eager"  # theirs by grouped_mm has no float64
    # eager: the only one that all of them have, and that computes soft-caps and sinks
    model = their_class(family)._from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


@dataclass
class Pair:
    """A transformers model and ours, imported from its files."""

    theirs: transformers.PreTrainedModel
    ours: GPT
    folder: Path
    ids: torch.Tensor


def make_pair(theirs: transformers.PreTrainedModel, folder: Path) -> Pair:
    theirs.save_pretrained(folder)
    ours = load_ours(folder)
    assert ours.config.vocab_size == theirs.config.vocab_size
    ids = torch.randint(1, ours.config.vocab_size, (3, NUM_TOKENS), generator=torch.Generator().manual_seed(1))
    return Pair(theirs, ours, folder, ids)


def load_ours(folder: Path) -> GPT:
    config, state = import_hf(folder)
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
