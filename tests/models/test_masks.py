import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.attention import Scoring, attend
from lit_gpt.models.cache import additive_mask
from lit_gpt.models.masks import build_masks, dense_mask, flex_block_mask, is_plain_causal

CPU, PLACES = torch.device("cpu"), torch.arange(8)
PACKED = torch.tensor([[0, 0, 0, 1, 1, 2, 2, -1], [0, 1, 1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("row", "plain"),
    [
        ([0, 0, 0, 0], True),
        ([3, 3, 3, 3], True),
        ([0, 0, -1, -1], True),  # padding comes after and sees; nothing real sees it
        ([-1, -1, -1, -1], True),
        ([0, 0, 1, 1], False),
        ([-1, -1, 0, 0], False),
        ([0, -1, 0, 0], False),
    ],
)
def test_is_plain_causal(row, plain):
    assert is_plain_causal(torch.tensor([[0, 0, 0, 0], row])) == plain


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("documents", [None, PACKED])
def test_dense_mask_in_loops(window, documents):
    mask = dense_mask(documents, window, PLACES, PLACES)
    B = 1 if documents is None else 2
    assert mask.shape == (B, 1, 8, 8)
    for b in range(B):
        for i in range(8):
            for j in range(8):
                expected = j <= i and (window is None or j > i - window)
                expected = expected and (documents is None or documents[b, i] == documents[b, j])
                assert mask[b, 0, i, j] == bool(expected)
    assert mask.diagonal(dim1=-2, dim2=-1).all(), "a position that sees nothing would give NaN"


def test_chunks_are_counted_from_the_start_of_each_document():
    config = GPTConfig(sliding_window=3, chunked_window=True)
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 0], [0, 0, 1, 2, 3, 4, 5, 6]])
    mask = build_masks(config, PACKED, 8, CPU, position_ids=positions).sliding
    for b in range(2):
        for i in range(8):
            for j in range(8):
                same_chunk = positions[b, i] // 3 == positions[b, j] // 3
                assert mask[b, 0, i, j] == bool(j <= i and PACKED[b, i] == PACKED[b, j] and same_chunk)
    whole = build_masks(config, None, 8, CPU).sliding
    query, key = torch.arange(6, 8)[None, :, None], torch.arange(8)[None, None]
    added = additive_mask(config, query, key, config.sliding_window, torch.float32)
    assert torch.equal(added == 0, whole[:, :, 6:]), "in decoding: its last rows"


def test_alibi_is_added_to_the_scores():
    mask = build_masks(GPTConfig(n_head=4, n_embd=64, positions="alibi"), PACKED, 8, CPU).full
    assert mask.shape == (2, 4, 8, 8)
    for h, slope in enumerate([2**-2, 2**-4, 2**-6, 2**-8]):  # of four heads, arXiv:2108.12409, section 3
        assert mask[1, h, 5, 2] == -slope * 3
    assert mask[0, 0, 4, 2] == -torch.inf, "another document"


def test_the_mask_of_a_decoding_step_is_the_last_rows_of_the_whole():
    query, key = torch.arange(6, 8)[None, :, None], torch.arange(8)[None, None]
    added = additive_mask(GPTConfig(), query, key, 3, torch.float32)
    assert torch.equal(added == 0, dense_mask(None, 3, PLACES, PLACES)[:, :, 6:])


def test_cheapest_form_is_chosen():
    full, windows = GPTConfig(), GPTConfig(sliding_window=4, layer_windows=(True,) * 6 + (False,) * 6)
    one = torch.zeros(2, 8, dtype=torch.int64)
    assert build_masks(full, None, 8, CPU) == (None, None)
    assert build_masks(full, one, 8, CPU) == (None, None)
    assert build_masks(full, PACKED, 8, CPU).full.shape == (2, 1, 8, 8)
    masks = build_masks(windows, None, 8, CPU)
    assert masks.full is None
    assert masks.sliding.shape == (1, 1, 8, 8)
    assert build_masks(windows, None, 4, CPU) == (None, None), "a window that covers the context is none"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("documents", [None, PACKED])
def test_flex_attention_follows_the_same_rule(window, documents):
    # Uncompiled FlexAttention is plain torch and runs on CPU: the rule is tested here, the kernel on a GPU below.
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 8, 16, generator=generator) for heads in (4, 2, 2))
    block_mask = flex_block_mask(documents, window, 8, CPU)
    y = flex_attention(q, k, v, block_mask=block_mask, enable_gqa=True)
    torch.testing.assert_close(y, attend(q, k, v, dense_mask(documents, window, PLACES, PLACES)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y, attend(q, k, v, block_mask), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_changes_scores_alike():
    q, k, v = (torch.randn(2, heads, 8, 16) for heads in (4, 2, 2))
    sinks, scoring = torch.randn(4), Scoring(0.4, softcap=1.5, alibi=True)
    positions = torch.tensor([0, 1, 2, 0, 1, 0, 1, 0])
    block_mask = flex_block_mask(PACKED, 2, 8, CPU, chunks=positions[None] // 2)
    config = GPTConfig(n_head=4, n_embd=64, positions="alibi", sliding_window=2, chunked_window=True)
    dense = build_masks(config, PACKED, 8, CPU, position_ids=positions).sliding
    ours = attend(q, k, v, block_mask, scoring, sinks)
    torch.testing.assert_close(ours, attend(q, k, v, dense, scoring, sinks), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 48])
def test_flex_attention_on_cuda_equals_the_dense_mask_on_cpu(window):
    config = GPTConfig(
        n_layer=2, n_head=4, n_kv_head=2, n_embd=128, block_size=256, vocab_size=64, sliding_window=window
    )
    model = GPT(config)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(64, (2, 256), generator=generator)
    documents = (torch.rand(2, 256, generator=generator) < 0.02).cumsum(1)
    documents[0, 200:] = -1
    expected = model(ids, document_ids=documents)
    expected.square().mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.cuda()
    logits = model(ids.cuda(), document_ids=documents.cuda())
    logits.square().mean().backward()
    torch.testing.assert_close(logits.cpu()[documents >= 0], expected[documents >= 0], rtol=1e-3, atol=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), gradients[name], rtol=1e-2, atol=1e-4, msg=name)
