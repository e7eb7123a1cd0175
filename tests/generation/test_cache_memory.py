"""Memory of the cache: taken as it is used, given back, of a default size that fits, and refused if it cannot fit."""

import mmap
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_chats import small_tokenizer

from lit_gpt.errors import UserError
from lit_gpt.generation import Engine, SamplingParams, generate
from lit_gpt.models import GPT, GPTConfig, MLAConfig
from lit_gpt.models import cache as states

CONFIG = GPTConfig(
    n_layer=2,
    n_head=2,
    n_embd=32,
    block_size=64,
    vocab_size=300,
    norm="rmsnorm",
    positions="rope",
    mlp="swiglu",
    bias=False,
    tie_embeddings=False,
)
GREEDY = SamplingParams(max_new_tokens=10, temperature=0, ignore_eos=True)
TOKEN_BYTES = 2 * 2 * 32 * 4
"""Layers x (key, value) x width x float32."""


def model_of(config=CONFIG):
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def resident():
    """Private memory of this process that is in use, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts resident memory there")
def test_a_row_takes_memory_as_tokens_arrive_and_gives_it_back():
    config = replace(CONFIG, block_size=1 << 16, n_layer=1, n_embd=64)
    (state,) = GPT(config).new_states(16, 1 << 16, dtype=torch.float32)
    assert state.num_bytes() == 16 * (1 << 16) * 2 * 64 * 4  # half a gigabyte
    before = resident()
    assert not state.keys.any(), "reading takes no memory"
    assert resident() - before < 8 << 20
    state.keys[3], state.values[3] = 1, 2
    written = resident() - before
    assert 30 << 20 < written < 48 << 20  # one row of sixteen: 32 MiB
    state.free_row(3)
    assert resident() - before < written - (28 << 20)
    assert not state.keys.any()


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="memory is given back by madvise")
def test_freeing_a_row_leaves_its_neighbours_whose_pages_it_shares():
    (state,) = GPT(replace(CONFIG, n_layer=1, block_size=5001)).new_states(5, 5001, dtype=torch.float32)
    assert state.keys.stride(0) * 4 % mmap.PAGESIZE, "rows that begin within a page"
    state.keys.copy_(torch.arange(5.0).view(5, 1, 1, 1).expand_as(state.keys))
    state.free_row(2)
    assert [state.keys[row].unique().tolist() for row in (0, 1, 3, 4)] == [[0.0], [1.0], [3.0], [4.0]]


VARIANTS = {
    "full attention": {},
    "windows": {"sliding_window": 6, "layer_windows": (True, False)},
    "latent attention": {"mla": MLAConfig(12, 20, 8, 4, 8)},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("cache_tokens", [None, 130])
def test_texts_are_the_same_while_rows_grow_share_prefixes_and_are_freed(changes, cache_tokens, monkeypatch):
    model = model_of(replace(CONFIG, **changes))
    rng = random.Random(0)
    system = [rng.randrange(1, 300) for _ in range(12)]
    prompts = [
        (system if rng.random() < 0.6 else []) + [rng.randrange(1, 300) for _ in range(rng.randint(1, 40))]
        for _ in range(14)
    ]
    expected = [generate(model, torch.tensor([p]), 10, temperature=0)[0, len(p) :].tolist() for p in prompts]
    monkeypatch.setattr(states, "_LAZY_BYTES", 1)
    engine = Engine(model, small_tokenizer(), max_batch_size=3, cache_tokens=cache_tokens, prefill_chunk=7)
    found = {str(number): [] for number in range(len(prompts))}
    waiting = list(enumerate(prompts))
    while waiting or engine.has_work:  # new ones arrive while others run
        for number, prompt in waiting[: rng.randint(0, 2)]:
            engine.add(prompt, GREEDY, str(number))
            waiting.pop(0)
        for event in engine.step():
            found[event.request_id].append(event.token_id)
    assert list(found.values()) == expected
    assert (engine.stats().reused_tokens > 0) == ("sliding_window" not in changes), "a ring has lost its beginning"
    kinds = [state._mappings[0] is not None for block in engine._blocks for state in block.states]
    assert kinds
    assert all(kinds)


def free(monkeypatch, num_bytes):
    monkeypatch.setattr("lit_gpt.generation.engine.free_memory", lambda device: num_bytes)


@pytest.mark.filterwarnings("ignore:free memory")
@pytest.mark.parametrize(
    ("num_tokens", "settings", "cache_tokens", "max_length"),
    [
        (10_000, {}, 256, 64),  # 4 x 64
        (200, {}, 150, 64),  # three quarters
        (40, {}, 30, 30),
        (200, {"cache_tokens": 190}, 190, 64),  # as asked
        (200, {"max_length": 20}, 80, 20),
    ],
)
def test_the_cache_fits_in_free_memory(monkeypatch, num_tokens, settings, cache_tokens, max_length):
    free(monkeypatch, num_tokens * TOKEN_BYTES)
    engine = Engine(model_of(), small_tokenizer(), max_batch_size=4, **settings)
    assert (engine.cache_tokens, engine.max_length) == (cache_tokens, max_length)
    stats = engine.stats()
    assert stats.cache_tokens_total == cache_tokens
    engine.generate([[1, 2, 3]] * 6, replace(GREEDY, max_new_tokens=4))
    assert sum(block.num_bytes() for block in engine._blocks) <= stats.cache_bytes <= num_tokens * TOKEN_BYTES


@pytest.mark.parametrize(
    ("num_tokens", "settings", "words"),
    [
        (200, {"cache_tokens": 210}, ["cache_tokens 210", "200 tokens", "lower"]),
        (20, {"max_length": 21}, ["max_length 21", "20 tokens", "lower"]),
        (0, {}, ["max_length 64", "0 tokens"]),
    ],
)
def test_a_cache_that_cannot_fit_is_refused(monkeypatch, num_tokens, settings, words):
    free(monkeypatch, num_tokens * TOKEN_BYTES)
    with pytest.raises(UserError) as refusal:
        Engine(model_of(), small_tokenizer(), max_batch_size=4, **settings)
    assert "\n" not in str(refusal.value)
    assert all(word in str(refusal.value) for word in words)


def test_a_shorter_context_than_the_models_is_announced(monkeypatch):
    free(monkeypatch, 40 * TOKEN_BYTES)
    with pytest.warns(UserWarning, match="30 tokens"):
        Engine(model_of(), small_tokenizer(), max_batch_size=4)


def test_windows_count_as_what_they_store():
    config = replace(CONFIG, sliding_window=6, layer_windows=(True, False))
    engine = Engine(model_of(config), small_tokenizer(), max_batch_size=4)
    assert engine.stats().cache_bytes == 4 * (64 + 7) * 2 * 32 * 4  # a window of 6, and one entry more
    engine.generate([[1, 2, 3]] * 6, GREEDY)
    assert sum(block.num_bytes() for block in engine._blocks) == engine.stats().cache_bytes
