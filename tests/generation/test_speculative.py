"""Guesses change nothing: greedy and sampled texts are the same, and frequencies pass the chi-square test."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from chi_square import p_value
from small_chats import small_tokenizer
from torch.optim import AdamW

from lit_gpt import Trainer
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.datamodules import TextDataModule
from lit_gpt.errors import UserError
from lit_gpt.generation import DraftModel, Engine, MultiTokenDrafts, PromptLookup, SamplingParams, Speculation, loading
from lit_gpt.generation.loading import load_for_generation, load_multi_token, load_speculation
from lit_gpt.generation.request import Request
from lit_gpt.models import GPT, GPTConfig, packed
from lit_gpt.models.multi_token import MultiTokenBlock
from lit_gpt.models.native import library
from lit_gpt.models.packed import prepare_for_inference
from lit_gpt.modules import PretrainModule

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
@pytest.mark.parametrize("how", ["look-up", "draft", "multi-token", "oracle"])
def test_the_text_is_the_same(config, settings, how):
    model = sharp(config)
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, **settings)
    plain = Engine(model, small_tokenizer()).generate(PROMPTS, params)
    texts = [prompt + completion.token_ids for prompt, completion in zip(PROMPTS, plain, strict=True)]
    proposer = {
        "look-up": PromptLookup(),
        "draft": DraftModel(near(model)),
        "multi-token": MultiTokenDrafts(model, MultiTokenBlock(config, 1)),
        "oracle": Oracle(texts),
    }[how]
    engine = Engine(model, small_tokenizer(), speculation=Speculation(proposer, 4))
    for one, other in zip(plain, engine.generate(PROMPTS, params), strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        assert one.finish_reason == other.finish_reason


class Recorded(MultiTokenDrafts):
    """Keeps what was proposed after which tokens."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.proposals = []

    def propose(self, request, count):
        drafts = super().propose(request, count)
        self.proposals.append((list(request.ids), drafts))
        return drafts


@pytest.mark.parametrize(
    "config",
    [CONFIG, SLIDING, replace(CONFIG, positions="learned", logit_scale=0.5, logit_softcap=5.0)],
    ids=["full", "sliding", "learned"],
)
@torch.no_grad()
def test_first_drafts_of_multi_token_prediction_are_those_of_training(config):
    model = sharp(replace(config, multi_token=1))
    block, model.multi_token = model.multi_token[0], None
    proposer = Recorded(model, block)
    engine = Engine(
        model, small_tokenizer(), max_batch_size=3, prefill_chunk=7, speculation=Speculation(proposer, 3), prepare=False
    )
    engine.generate(PROMPTS, SamplingParams(max_new_tokens=20, temperature=0, ignore_eos=True))
    model.multi_token = torch.nn.ModuleList([block])
    assert any(len(drafts) == 3 for _, drafts in proposer.proposals)
    for ids, drafts in proposer.proposals:
        if len(ids) > 1 and len(ids) < 63:
            _, ahead = model(torch.tensor([ids]), mtp_head_fns=[torch.nn.functional.linear])
            assert drafts[0] == ahead[0][0, -2].argmax()


@pytest.mark.parametrize(("new", "reuses"), [(15, True), (90, False)], ids=["prefix", "full context"])
def test_multi_token_prediction_after_a_copied_prefix_and_a_full_context(new, reuses):
    """What was never seen, or is seen anew, is left out: proposals may be worse, the text is the same."""
    model = sharp(CONFIG)
    texts = []
    for speculation in (None, Speculation(Recorded(model, MultiTokenBlock(CONFIG, 1)), 3)):
        engine = Engine(model, None, re_prefill_when_full=True, speculation=speculation)
        params = SamplingParams(max_new_tokens=new, temperature=0)
        found = []
        for name in "abc":  # one after another: the later ones begin with the first one's kept prefix
            engine.add(PROMPTS[-1] + [7], params, name)
            while engine.has_work:
                found += [event.token_id for event in engine.step()]
        texts.append(found)
        assert (engine.stats().reused_tokens > 0) == reuses
    assert texts[0] == texts[1]
    assert any(drafts for _, drafts in speculation.proposer.proposals)


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
        speculation = load_speculation(model, small_tokenizer(), None, None, draft_tokens)
        engine = Engine(model, small_tokenizer(), max_batch_size=4, speculation=speculation)
        with patch.object(PromptLookup, "propose", autospec=True, side_effect=PromptLookup.propose) as propose:
            found.append([(one.token_ids, one.logprobs) for one in engine.generate(prompts, params)])
        assert propose.called == (draft_tokens is None and len(prompts) == 1), "not for several at once"
    assert found[0] == found[1]


def test_no_default_where_it_would_not_be_faster():
    model = sharp(CONFIG)
    assert load_speculation(model, small_tokenizer(), None, None, None, compile=True) is None
    assert load_speculation(model, small_tokenizer(), None, None, 0) is None
    with patch.object(loading, "can_truncate", return_value=False):
        assert load_speculation(model, small_tokenizer(), None, None, None) is None


def test_refused():
    with pytest.raises(UserError, match="draft_tokens is 0"):
        Speculation(PromptLookup(), 0)
    from lit_gpt.data.bpe import train_bpe

    other = train_bpe(["something else entirely"] * 5, 280)
    with pytest.raises(UserError, match="tokenizer differs"):
        Speculation.of(small_tokenizer(), 4, (sharp(CONFIG), other))


def test_a_run_trained_with_multi_token_prediction_drafts_with_it(tmp_path, capsys):
    """A text of one repeated line is learned in a few steps; then the block's drafts are right and steps are saved."""
    line = "one two three four five six seven\n"
    (tmp_path / "text.txt").write_text(line * 400)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "multi_token": 1}
    module = PretrainModule(preset="tiny", block_size=64, overrides=shape, optimizer=partial(AdamW, lr=1e-2))
    data = TextDataModule(
        files=str(tmp_path / "text.txt"), vocab_size=270, block_size=64, global_batch_size=8, cache_dir=str(tmp_path)
    )
    trainer = Trainer(
        name="ahead", default_root_dir=str(tmp_path / "runs"), max_steps=60, logger=False, enable_progress_bar=False,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    run = str(tmp_path / "runs" / "ahead")
    model, tokenizer = load_for_generation(run, "cpu")
    source = resolve_model(run)
    speculation = load_speculation(model, tokenizer, source, None, 3)
    assert isinstance(speculation.proposer, MultiTokenDrafts)
    steps, texts = [], []
    for each in (None, speculation):
        engine = Engine(model, tokenizer, speculation=each)
        params = SamplingParams(max_new_tokens=40, temperature=0, ignore_eos=True)
        texts.append(engine.generate([tokenizer.encode("one two").tolist()], params)[0].text)
        steps.append(engine.stats().steps)
    assert texts[0] == texts[1]
    assert steps[1] < 0.7 * steps[0]
    engine.generate([tokenizer.encode("three").tolist()] * 3, params)
    assert len(speculation.proposer._records) <= 3, "of finished requests nothing is kept beyond the next forward"
    assert isinstance(load_speculation(model, tokenizer, source, None, 3, compile=True).proposer, PromptLookup)
    save_bundle(tmp_path / "bundle", model.config, model.state_dict(), source.tokenizer_path)
    exported = load_speculation(model, tokenizer, resolve_model(tmp_path / "bundle"), None, 3)
    assert isinstance(exported.proposer, PromptLookup), "exports leave the block out"
    other = replace(source, load_state_dict=lambda: {"multi_token.0.proj.weight": torch.zeros(2)})
    assert load_multi_token(model, other) is None, "a block that was built otherwise"
    packed, _ = load_for_generation(run, "cpu", weights="bfloat16")
    speculation = load_speculation(packed, tokenizer, source, None, 3)
    engine = Engine(packed, tokenizer, speculation=speculation)
    assert engine.generate([tokenizer.encode("one two").tolist()], params)[0].text == texts[0]
    assert engine.stats().steps < 0.7 * steps[0]
