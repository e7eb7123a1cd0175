"""Guesses change nothing: greedy and sampled texts are the same, and frequencies pass the chi-square test."""

from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from chi_square import p_value
from small_chats import small_tokenizer

from lit_gpt.errors import UserError
from lit_gpt.generation import DraftModel, Engine, PromptLookup, SamplingParams, Speculation, loading
from lit_gpt.generation.loading import load_speculation
from lit_gpt.generation.request import Request
from lit_gpt.models import GPT, GPTConfig, packed
from lit_gpt.models.native import library
from lit_gpt.models.packed import prepare_for_inference

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
)
SLIDING = replace(CONFIG, sliding_window=6, layer_windows=(True, False))
PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [9], [1, 2, 3, 4, 1, 2], list(range(20, 60))]


def sharp(config, seed=0):
    torch.manual_seed(seed)
    model = GPT(replace(config, tie_embeddings=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


def near(model, noise=0.02):
    """A draft model that often agrees."""
    other = GPT(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return other


class Oracle:
    """Guesses that are right, wrong, or right for a while: every way of accepting."""

    def __init__(self, texts):
        self.texts = texts

    def propose(self, request, count):
        text = next(text for text in self.texts if text[: len(request.ids)] == request.ids)
        drafts = text[len(request.ids) : len(request.ids) + count]
        wrong = request.num_new % (count + 1)
        return [(token + 1) % 300 if at == wrong else token for at, token in enumerate(drafts)]


@pytest.mark.parametrize(
    "config", [CONFIG, SLIDING, replace(SLIDING, chunked_window=True)], ids=["full", "sliding", "chunks"]
)
@pytest.mark.parametrize(
    "settings", [{"temperature": 0}, {"seed": 3}, {"seed": 4, "top_p": 0.8, "repetition_penalty": 1.2}]
)
@pytest.mark.parametrize("how", ["look-up", "draft", "oracle"])
def test_the_text_is_the_same(config, settings, how):
    model = sharp(config)
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, **settings)
    plain = Engine(model, small_tokenizer()).generate(PROMPTS, params)
    texts = [prompt + completion.token_ids for prompt, completion in zip(PROMPTS, plain, strict=True)]
    proposer = {"look-up": PromptLookup(), "draft": DraftModel(near(model)), "oracle": Oracle(texts)}[how]
    engine = Engine(model, small_tokenizer(), speculation=Speculation(proposer, 4))
    for one, other in zip(plain, engine.generate(PROMPTS, params), strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        assert one.finish_reason == other.finish_reason


def test_fewer_steps_where_guesses_are_right():
    model = sharp(CONFIG)
    params = SamplingParams(max_new_tokens=40, temperature=0, ignore_eos=True)
    engine = Engine(model, small_tokenizer(), speculation=Speculation(DraftModel(near(model, 0.0)), 4))
    engine.generate([[1, 2, 3]], params)
    assert engine.stats().steps == 1 + 8  # the prompt, then five tokens a step
    engine = Engine(model, small_tokenizer(), speculation=Speculation(DraftModel(near(model, 0.01)), 4))
    engine.generate([[1, 2, 3]], replace(params, temperature=1.0, seed=1))
    assert engine.stats().steps < 30


def test_sampled_frequencies_pass_a_chi_square_test():
    """Second tokens after a guessed first one, over many seeds, against the product of the model's distributions."""
    config = replace(CONFIG, vocab_size=300, n_layer=1)
    model = sharp(config)
    params = SamplingParams(max_new_tokens=3, temperature=0.4, top_k=4, ignore_eos=True)
    engine = Engine(
        model, small_tokenizer(), max_batch_size=64, speculation=Speculation(DraftModel(near(model, 0.1)), 2)
    )
    draws = 1500
    texts = engine.generate([[1, 2, 3]] * draws, [replace(params, seed=seed) for seed in range(draws)])

    def distribution(ids):
        with torch.no_grad():
            best = (model(torch.tensor([ids]))[0, -1] / 0.4).topk(4)
        return dict(zip(best.indices.tolist(), best.values.softmax(0).tolist(), strict=True))

    chances = {}
    for first, share in distribution([1, 2, 3]).items():
        for second, other in distribution([1, 2, 3, first]).items():
            for third, last in distribution([1, 2, 3, first, second]).items():
                chances[first, second, third] = share * other * last
    counts = dict.fromkeys(chances, 0)
    for text in texts:
        counts[tuple(text.token_ids)] += 1
    assert p_value(list(counts.values()), [share * draws for share in chances.values()]) > 1e-3


def test_look_up_finds_the_latest_longest_match():
    def guess(ids, count=3):
        return PromptLookup().propose(Request("x", ids, SamplingParams(), small_tokenizer()), count)

    assert guess([1, 2, 3, 9, 8, 1, 2, 3]) == [9, 8, 1]
    assert guess([7, 1, 7, 2, 7]) == [2, 7]
    assert guess([1, 2, 3]) == []
    assert guess([4]) == []


def test_look_up_adapts_to_how_often_it_is_right():
    request = Request("x", [1, 2, 3, 4, 5, 1, 2], SamplingParams(), small_tokenizer())
    lookup, proposed = PromptLookup(shortest=2, adaptive=True), []

    def follow(tokens):
        for token in tokens:
            drafts = lookup.propose(request, 3)
            proposed.append(len(drafts))
            request.ids.extend(drafts if drafts[:1] == [token] else [token])

    follow([3])
    assert request.ids[-3:] == [3, 4, 5], "right: all three are kept"
    follow([8, 8, 8, 8, 8, 8])  # from the third on, the last two have occurred before
    proposed.clear()
    for _ in range(60):  # wrong every time
        drafts = lookup.propose(request, 3)
        proposed.append(len(drafts))
        request.ids.append(7 if drafts[:1] != [7] else 6)
    tries = [at for at, count in enumerate(proposed) if count]
    assert 2 <= len(tries) <= 8, tries
    assert max(b - a for a, b in pairwise(tries)) >= 32, "now and then one is tried"


@pytest.mark.skipif(library() is None, reason="no C compiler")
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_with_compiled_kernels_the_default_changes_nothing_to_the_bit(prompts, monkeypatch):
    monkeypatch.setattr(packed, "_KINDS", {"float32": (packed.NativeFloatWeight,)})
    config = replace(CONFIG, n_embd=64, intermediate_size=128, vocab_size=304)
    params = SamplingParams(max_new_tokens=20, temperature=0, ignore_eos=True, logprobs=0)
    model = sharp(config).requires_grad_(False)
    prepare_for_inference(model, "float32")
    found = []
    for draft_tokens in (0, None):
        speculation = load_speculation(model, small_tokenizer(), None, draft_tokens)
        engine = Engine(model, small_tokenizer(), max_batch_size=4, speculation=speculation)
        with patch.object(PromptLookup, "propose", autospec=True, side_effect=PromptLookup.propose) as propose:
            found.append([(one.token_ids, one.logprobs) for one in engine.generate(prompts, params)])
        assert propose.called == (draft_tokens is None and len(prompts) == 1), "not for several at once"
    assert found[0] == found[1]


def test_no_default_where_it_would_not_be_faster():
    model = sharp(CONFIG)
    assert load_speculation(model, small_tokenizer(), None, None, compile=True) is None
    assert load_speculation(model, small_tokenizer(), None, 0) is None
    assert load_speculation(model, small_tokenizer(), None, 3).num_tokens == 3
    with patch.object(loading, "can_truncate", return_value=False):
        assert load_speculation(model, small_tokenizer(), None, None) is None


def test_refused():
    with pytest.raises(UserError, match="draft_tokens is 0"):
        Speculation(PromptLookup(), 0)
    from lit_gpt.data.bpe import train_bpe

    other = train_bpe(["something else entirely"] * 5, 280)
    with pytest.raises(UserError, match="tokenizer differs"):
        Speculation.of(small_tokenizer(), 4, (sharp(CONFIG), other))
