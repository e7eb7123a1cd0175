"""The engine gives what whole forwards give, for every family: cached, batched, chunked and continuous."""

import random
from dataclasses import replace

import pytest
import torch
from small_chats import small_tokenizer

from lit_gpt.generation import Completion, Engine, SamplingParams
from lit_gpt.models import GPT, RopeScaling, get_preset, preset_names
from lit_gpt.models.families.ladder import shrink

VOCAB, LENGTH, NEW, TIE = 300, 64, 20, 1e-4


def families():
    """One preset of each family, small, with windows of 16 in texts of up to 64; then what scales by length."""
    found = {}
    for name in preset_names():
        config = get_preset(name)
        found.setdefault((config.family, config.mla is None, config.moe is None), (name, config))
    small = {"n_layer": 4, "n_embd": 32, "n_head": 4, "block_size": LENGTH, "vocab_size": VOCAB}
    configs = {name: shrink(config, **small) for name, config in found.values()}
    half = (1.0, 1.5, 2.0, 2.5)
    longrope = RopeScaling("longrope", 4.0, original_block_size=40, short_factors=half, long_factors=half[::-1])
    configs["longrope"] = replace(shrink(get_preset("llama-3.2-1b"), **small), rope_scaling=longrope)
    return configs


@pytest.fixture(params=families().items(), ids=lambda item: item[0])
def model(request):
    torch.manual_seed(0)
    model = GPT(replace(request.param[1], tie_embeddings=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)  # so that a token depends on all of its context
    return model


def prompts():
    rng = random.Random(0)
    texts = [[rng.randrange(1, VOCAB) for _ in range(length)] for length in (3, 30, 1, 44, 18)]
    return [*texts, [*texts[1][:20], 5, 6], list(texts[1])]  # shared beginnings


def check(model: GPT, completion: Completion) -> None:
    """Each token is the likeliest of a whole forward, or within 1e-4 of it; log-probabilities agree within 1e-4."""
    prompt, new = completion.prompt_ids, completion.token_ids
    text = torch.tensor([prompt + new])
    places = torch.arange(len(prompt) - 1, text.shape[1] - 1)
    if model.config.rope_scaling is not None and model.config.rope_scaling.kind == "longrope":
        # Which table rotates depends on the length of the text, so each step is a forward of its own.
        steps = [model(text[:, : int(place) + 1])[0, -1] for place in places]
        expected = torch.stack(steps).log_softmax(-1)
    else:
        expected = model(text[:, :-1])[0, places].log_softmax(-1)
    drawn = expected.gather(1, torch.tensor(new)[:, None])[:, 0]
    assert completion.logprobs is not None
    torch.testing.assert_close(torch.tensor(completion.logprobs), drawn, rtol=0, atol=1e-4)
    assert (expected.max(-1).values - drawn <= TIE).all()


def run(engine: Engine, arrivals: int) -> list[Completion]:
    """So many requests arrive a step; the others wait outside."""
    params = SamplingParams(max_new_tokens=NEW, temperature=0, ignore_eos=True, logprobs=0)
    texts, events, waiting = prompts(), {}, list(enumerate(prompts()))
    while waiting or engine.has_work:
        for number, prompt in waiting[:arrivals]:
            engine.add(prompt, params, str(number))
            events[str(number)] = []
        waiting = waiting[arrivals:]
        for event in engine.step():
            events[event.request_id].append(event)
    return [Completion.of(text, events[str(number)], True) for number, text in enumerate(texts)]


MODES = {
    "alone": ({"max_batch_size": 1, "reuse_prefixes": False}, 1),
    "batched": ({"max_batch_size": 8, "reuse_prefixes": False}, 8),
    "chunked": ({"max_batch_size": 8, "prefill_chunk": 7}, 8),
    "continuous": ({"max_batch_size": 3, "prefill_chunk": 9, "cache_tokens": 2 * LENGTH}, 1),
    "sharing beginnings": ({"max_batch_size": 8, "cache_tokens": 9 * LENGTH}, 2),
}


@torch.no_grad()
def test_every_way_of_running_is_the_whole_forward(model):
    runs = {
        name: run(Engine(model, small_tokenizer(), **settings), arrivals)
        for name, (settings, arrivals) in MODES.items()
    }
    for completions in runs.values():
        for completion in completions:
            check(model, completion)
    lengths = {name: [len(completion.token_ids) for completion in completions] for name, completions in runs.items()}
    assert lengths["alone"] == [20, 20, 20, 20, 20, 20, 20]
    for name, completions in runs.items():
        for one, other in zip(runs["alone"], completions, strict=True):
            if one.token_ids == other.token_ids:
                continue
            parted = next(i for i, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=True)) if a != b)
            best = model(torch.tensor([one.prompt_ids + one.token_ids[:parted]]))[0, -1].topk(2).values
            assert best[0] - best[1] <= TIE, (
                f"{name}: parted at token {parted}, where the best is {best[0] - best[1]} ahead"
            )
