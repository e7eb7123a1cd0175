"""Every family in the registry, in each of its variants, against transformers: logits, gradients, files."""

import copy

import pytest
import torch
from pairs import LOGITS_TOLERANCE, every_variant, relative_difference
from safetensors.torch import load_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from lit_gpt.checkpoints.huggingface import export_hf, import_hf
from lit_gpt.models import Cache

pytestmark = pytest.mark.parametrize(("family", "variant"), every_variant())


@torch.no_grad()
def test_logits(pair):
    ids = pair.ids
    for length in (ids.shape[1], 12):  # beyond windows and original contexts, and within them
        expected = pair.theirs(ids[:, :length], use_cache=False).logits
        assert expected.abs().max() > 0.5, "logits near 0 would prove nothing"
        assert relative_difference(pair.ours(ids[:, :length]), expected) < LOGITS_TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding(pair, side):
    real = padded(pair.ids, side)
    positions = (real.long().cumsum(1) - 1).clamp(min=0)
    scaling = pair.ours.config.rope_scaling
    if scaling is not None and scaling.follows_length:
        # Theirs stretches all rows by the longest of the batch, ours each by its own length: theirs one by one then.
        expected = torch.cat([_alone(pair, row, real, positions) for row in range(len(pair.ids))])
    else:
        expected = pair.theirs(pair.ids, attention_mask=real.long(), position_ids=positions, use_cache=False).logits
    logits = pair.ours(pair.ids, position_ids=positions, document_ids=torch.where(real, 0, -1))
    assert logits.isfinite().all()
    assert relative_difference(logits[real], expected[real]) < LOGITS_TOLERANCE


def _alone(pair, row, real, positions):
    """Their logits of one row, as of a fresh model: dynamic RoPE remembers the longest text until it sees a short one."""
    pair.theirs(pair.ids[:1, :2], use_cache=False)
    one = slice(row, row + 1)
    inputs = {"attention_mask": real[one].long(), "position_ids": positions[one]}
    return pair.theirs(pair.ids[one], use_cache=False, **inputs).logits


@torch.no_grad()
def test_float64(pair):
    theirs, ours = copy.deepcopy(pair.theirs).double(), copy.deepcopy(pair.ours).double()
    expected = theirs(pair.ids, use_cache=False).logits
    assert relative_difference(ours(pair.ids), expected) < 1e-6  # transformers' norms compute in float32


@torch.no_grad()
def test_cached_decoding(pair):
    scaling = pair.ours.config.rope_scaling
    by_length = scaling is not None and scaling.kind in ("dynamic", "longrope")
    # What has been rotated for a short context stays so in a cache, in transformers too.
    length = scaling.original_block_size if by_length else pair.ids.shape[1]
    ids = pair.ids[:, :length]
    cache = Cache(pair.ours, len(ids))
    pieces = [pair.ours(piece, cache=cache.step(piece.shape[1])) for piece in (ids[:, :7], *ids[:, 7:].split(1, dim=1))]
    assert relative_difference(torch.cat(pieces, dim=1), pair.ours(ids)) < LOGITS_TOLERANCE


def test_gradients(pair, tmp_path):
    theirs, ours = copy.deepcopy(pair.theirs), copy.deepcopy(pair.ours)
    weights = torch.randn(*pair.ids.shape, ours.config.vocab_size, generator=torch.Generator().manual_seed(2))
    (theirs(pair.ids, use_cache=False).logits * weights).sum().backward()
    (ours(pair.ids) * weights).sum().backward()
    # Their gradients go through their own writer and our reader, which give them our names and layout.
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    theirs.save_pretrained(tmp_path)
    _, expected = import_hf(tmp_path)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        assert expected[name].abs().max() > 0, f"{name} has no gradient"
        # Where nothing rotates, a key's bias shifts all scores of a query alike: its gradient is 0 but for rounding.
        scale = max(expected[name].abs().max(), 1e-3 * largest)
        assert (parameter.grad - expected[name]).abs().max() < 1e-4 * scale, name


def test_files(pair, tmp_path):
    export_hf(pair.ours.config, pair.ours.state_dict(), tmp_path)
    theirs, ours = load_file(pair.folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    reimported, _ = import_hf(tmp_path)
    assert reimported == pair.ours.config


@torch.no_grad()
def test_transformers_opens_the_export(pair, tmp_path):
    export_hf(pair.ours.config, pair.ours.state_dict(), tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    # Mistral 4's class is the one that AutoModelForCausalLM does not know.
    opener = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else type(pair.theirs)
    again = opener.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    assert type(again) is type(pair.theirs)
    state = pair.theirs.state_dict()
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    expected = again(pair.ids, use_cache=False).logits
    assert relative_difference(pair.ours(pair.ids), expected) < LOGITS_TOLERANCE


def padded(ids: torch.Tensor, side: str) -> torch.Tensor:
    """(B, T) bool, False on padding: rows of three lengths."""
    B, T = ids.shape
    lengths = torch.tensor([T, T - 7, T // 2])[:B, None]
    places = torch.arange(T)[None]
    return places < lengths if side == "right" else places >= T - lengths
