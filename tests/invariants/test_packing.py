"""Packed documents do not see each other: they give what they would give each in a row of its own."""

import pytest
import torch
import torch.nn.functional as F

from lit_gpt.models import GPT

LENGTHS = [(9, 1, 14), (3, 12, 6)]
"""Of the documents of two rows of 24 tokens; the second row ends in 3 tokens of padding."""


@pytest.fixture
def packed():
    """ids, labels, position_ids, document_ids, each (2, 24)."""
    ids = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(0))
    labels = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(1))
    positions, documents = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for number, length in enumerate(lengths):
            positions[row, start : start + length] = torch.arange(length)
            documents[row, start : start + length] = number
            start += length
    labels[documents == -1] = -100
    return ids, labels, positions, documents


def pieces(documents):
    """(row, slice) of every document."""
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            yield row, slice(start, start + length)
            start += length
    assert start == (documents[-1] >= 0).sum()


@torch.no_grad()
def test_a_change_in_one_document_leaves_the_others_to_the_bit(packable_config, packed):
    ids, _, positions, documents = packed
    model = GPT(packable_config)
    before = model(ids, positions, documents)
    for row, where in pieces(documents):
        changed = ids.clone()
        changed[row, where] = (ids[row, where] + 1) % 61
        after = model(changed, positions, documents)
        elsewhere = documents >= 0
        elsewhere[row, where] = False
        assert torch.equal(before[elsewhere], after[elsewhere])
        assert (before[row, where] != after[row, where]).any()


@torch.no_grad()
def test_a_change_in_the_padding_leaves_every_document_to_the_bit(packable_config, packed):
    ids, _, positions, documents = packed
    model = GPT(packable_config)
    real = documents >= 0
    changed = torch.where(real, ids, (ids + 1) % 61)
    assert torch.equal(model(ids, positions, documents)[real], model(changed, positions, documents)[real])


def test_packed_equals_separate_in_logits_and_gradients(packable_config, packed):
    ids, labels, positions, documents = packed
    model = GPT(packable_config)
    logits = model(ids, positions, documents)
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    loss.backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    total = 0.0
    for row, where in pieces(documents):
        alone = model(ids[row : row + 1, where])
        torch.testing.assert_close(alone[0], logits[row, where], rtol=1e-5, atol=1e-5)
        part = F.cross_entropy(alone[0], labels[row, where], reduction="sum")
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        largest = together[name].abs().max()
        assert (parameter.grad - together[name]).abs().max() <= 1e-5 * largest + 1e-6, name


@torch.no_grad()
def test_without_document_ids_documents_do_see_each_other(packable_config, packed):
    # Guards the tests above: the isolation comes from document_ids, not from a model that ignores its context.
    ids, _, positions, _ = packed
    model = GPT(packable_config)
    changed = ids.clone()
    changed[0, 8] = (ids[0, 8] + 1) % 61
    assert (model(ids, positions)[0, 9] != model(changed, positions)[0, 9]).any()


@torch.no_grad()
def test_a_row_gives_what_it_gives_alone(packable_config, packed):
    ids, _, positions, documents = packed
    model = GPT(packable_config)
    together = model(ids, positions, documents)
    shorter = torch.stack((torch.arange(24), torch.arange(24).clamp(max=8)))
    without = model(ids, shorter)  # rows of 24 and 9 positions
    for row in range(2):
        one = slice(row, row + 1)
        torch.testing.assert_close(model(ids[one], positions[one], documents[one]), together[one])
        torch.testing.assert_close(model(ids[one], shorter[one]), without[one])
