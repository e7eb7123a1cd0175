"""Small random transformers models, and the comparison that each family's test makes with them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lit_gpt.checkpoints.huggingface import export_hf, import_hf
from lit_gpt.models import GPT

LOGITS_TOLERANCE = 1e-5
"""Largest difference of logits in float32, relative to the largest logit."""


def save_theirs(theirs: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Save a model whose every parameter is random, biases and norm gains too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    theirs.eval().save_pretrained(folder)
    return theirs


def load_ours(folder: Path) -> GPT:
    config, state = import_hf(folder)
    model = GPT(config)
    model.load_state_dict(state)
    return model.eval()


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture
def check_parity(tmp_path: Path):
    """`check(their_model)` → our imported model, after every comparison; the export lies in tmp_path / "exported"."""
    return lambda theirs: compare(theirs, tmp_path / "theirs", tmp_path / "exported")


@torch.no_grad()
def compare(theirs: PreTrainedModel, folder: Path, exported: Path) -> GPT:
    """Import → same logits, plain and padded on either side; export → same tensors bit for bit, same logits again."""
    save_theirs(theirs, folder)
    ours = load_ours(folder)
    vocab_size, block_size = ours.config.vocab_size, min(ours.config.block_size, 48)
    assert vocab_size == theirs.config.vocab_size
    ids = torch.randint(vocab_size, (3, block_size), generator=torch.Generator().manual_seed(1))

    expected = theirs(ids).logits
    assert expected.abs().max() > 0.5, "logits near 0 would prove nothing"
    assert relative_difference(ours(ids), expected) < LOGITS_TOLERANCE

    for real in (_padded(ids, "right"), _padded(ids, "left")):
        positions = (real.long().cumsum(1) - 1).clamp(min=0)
        expected = theirs(ids, attention_mask=real.long(), position_ids=positions).logits
        logits = ours(ids, position_ids=positions, document_ids=torch.where(real, 0, -1))
        assert logits.isfinite().all()
        assert relative_difference(logits[real], expected[real]) < LOGITS_TOLERANCE

    export_hf(ours.config, ours.state_dict(), exported)
    again = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    assert type(again) is type(theirs)
    their_state = theirs.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, their_state[name]), name
    assert set(again.state_dict()) == set(their_state)
    assert relative_difference(ours(ids), again.eval()(ids).logits) < LOGITS_TOLERANCE
    reimported, _ = import_hf(exported)
    assert reimported == ours.config
    return ours


def _padded(ids: torch.Tensor, side: str) -> torch.Tensor:
    """(B, T) bool, False on padding: rows of three lengths."""
    B, T = ids.shape
    lengths = torch.tensor([T, T - 7, T // 2])[:B, None]
    places = torch.arange(T)[None]
    return places < lengths if side == "right" else places >= T - lengths
