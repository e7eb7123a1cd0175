"""What the engine promises beyond the right tokens: admission, ends, cancellation, seeds, stops, statistics."""

import copy
import gc
import itertools
import random
import weakref
from dataclasses import replace

import pytest
import torch
from small_chats import small_tokenizer

from lit_gpt.errors import UserError
from lit_gpt.generation import Engine, PromptLookup, SamplingParams, Speculation, generate
from lit_gpt.models import GPT, GPTConfig

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
GREEDY = SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True)


@pytest.fixture
def model():
    model = GPT(replace(CONFIG, tie_embeddings=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return model


@pytest.fixture
def engine(model):
    return Engine(model, small_tokenizer(), max_batch_size=4)


def texts(count, seed=0, longest=30):
    rng = random.Random(seed)
    return [[rng.randrange(1, 300) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def drain(engine):
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def test_greedy_is_what_generate_gives(model, engine):
    for prompt, completion in zip(texts(9), engine.generate(texts(9), GREEDY), strict=True):
        ids = torch.tensor([prompt])
        assert completion.token_ids == generate(model, ids, 12, temperature=0)[0, len(prompt) :].tolist()
        assert completion.finish_reason == "length"


def test_a_seed_gives_the_same_text_alone_and_in_any_company(model, engine):
    params = SamplingParams(max_new_tokens=16, temperature=1.0, top_p=0.9, seed=7, ignore_eos=True)
    prompt = texts(1, seed=5)[0]
    alone = engine.generate([prompt], params)[0]
    company = [replace(params, seed=seed, top_p=None, top_k=20) for seed in range(5)]
    crowded = engine.generate([*texts(5), prompt], [*company, params])[-1]
    small = Engine(model, small_tokenizer(), max_batch_size=2, prefill_chunk=3).generate([*texts(3), prompt], params)[
        -1
    ]
    assert alone.token_ids == crowded.token_ids == small.token_ids
    assert engine.generate([prompt], replace(params, seed=8))[0].token_ids != alone.token_ids


def test_without_a_seed_each_time_is_another(engine):
    params = SamplingParams(max_new_tokens=16, ignore_eos=True)
    first, second = engine.generate([[1, 2, 3]] * 2, params)
    assert first.token_ids != second.token_ids


@pytest.mark.parametrize("settings", [{}, {"cache_tokens": 64}, {"cache_tokens": 150, "prefill_chunk": 4}])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_starved_under_random_arrivals_and_cancellations(model, settings, seed):
    rng = random.Random(seed)
    engine = Engine(model, small_tokenizer(), max_batch_size=3, **settings)
    prompts = texts(40, seed=seed)
    expected = {str(n): len(generate(model, torch.tensor([p]), 12, temperature=0)[0]) for n, p in enumerate(prompts)}
    events = {}
    first_seen, added, cancelled, step = {}, 0, set(), 0
    while added < len(prompts) or engine.has_work:
        for _ in range(rng.randint(0, 3)):
            if added < len(prompts):
                engine.add(prompts[added], GREEDY, str(added))
                events[str(added)] = []
                added += 1
        if events and rng.random() < 0.15:
            gone = rng.choice(list(events))
            if not events[gone] or events[gone][-1].finish_reason is None:
                cancelled.add(gone)
            engine.cancel(gone)
        for event in engine.step():
            events[event.request_id].append(event)
            first_seen.setdefault(event.request_id, step)
        step += 1
        assert engine.stats().num_running <= 3
        assert engine.stats().cache_tokens_used <= engine.stats().cache_tokens_total
        assert step < 3000
    for name, own in events.items():
        assert [event.finish_reason is not None for event in own] == [False] * (len(own) - 1) + [True]
        if own[-1].finish_reason == "cancelled":
            assert name in cancelled
        else:
            prompt = prompts[int(name)]
            tokens = [event.token_id for event in own]
            assert len(prompt) + len(tokens) == expected[name]
            assert tokens == generate(model, torch.tensor([prompt]), 12, temperature=0)[0, len(prompt) :].tolist()
    finished = [name for name in events if name not in cancelled]
    waits = [first_seen[name] for name in finished]
    assert all(later - earlier >= -12 for earlier, later in itertools.pairwise(waits)), "first come, first served"
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.cache_tokens_used) == (0, 0, 0)


def test_a_long_prompt_does_not_stop_the_others(model):
    engine = Engine(model, small_tokenizer(), max_batch_size=4, prefill_chunk=4)
    engine.add([1, 2], GREEDY, "short")
    engine.step()
    engine.add(texts(1, seed=3, longest=40)[0] * 2, GREEDY, "long")
    for _ in range(5):
        assert next(event.request_id for event in engine.step()) == "short"


def test_stop_strings_and_stop_tokens_are_not_part_of_the_text(engine):
    free = engine.generate([[1, 2, 3]], GREEDY)[0]
    tokenizer = small_tokenizer()
    stop = next(free.text[i : i + 2] for i in range(2, len(free.text)) if len(free.text[i : i + 2]) == 2)
    ended = engine.generate([[1, 2, 3]], replace(GREEDY, stop=(stop,)))[0]
    assert ended.finish_reason == "stop"
    assert ended.text == free.text[: free.text.index(stop)]
    token = free.token_ids[5]
    ended = engine.generate([[1, 2, 3]], replace(GREEDY, stop_token_ids=(token,)))[0]
    first = free.token_ids.index(token)
    assert ended.token_ids == free.token_ids[: first + 1]
    assert ended.text == tokenizer.decode([1, 2, 3, *free.token_ids[:first]])[len(tokenizer.decode([1, 2, 3])) :]
    eos = tokenizer.separator_id
    bias = replace(GREEDY, logit_bias={eos: 100.0})
    assert engine.generate([[1, 2]], replace(bias, ignore_eos=False))[0].token_ids == [eos]
    assert engine.generate([[1, 2]], bias)[0].token_ids == [eos] * 12


def test_pieces_are_whole_characters_and_together_the_text(engine):
    engine.add([1, 2, 3], SamplingParams(max_new_tokens=40, seed=1, ignore_eos=True), "a")
    events = drain(engine)
    ids = [event.token_id for event in events]
    whole = small_tokenizer().decode([1, 2, 3, *ids])[len(small_tokenizer().decode([1, 2, 3])) :]
    assert "".join(event.text for event in events) == whole


def test_cancelled_while_waiting_and_while_running(engine):
    for number, prompt in enumerate(texts(6)):
        engine.add(prompt, GREEDY, str(number))
    engine.step()
    engine.cancel("0")
    engine.cancel("5")
    engine.cancel("unknown")
    events = engine.step()
    ends = {event.request_id: event for event in events if event.finish_reason == "cancelled"}
    assert set(ends) == {"0", "5"}
    assert all(event.token_id is None for event in ends.values())
    assert sorted({event.request_id for event in drain(engine)}) == ["1", "2", "3", "4"]


def test_a_full_context_ends_a_text_or_is_read_again(model):
    prompt = texts(1, longest=30)[0][:20]
    ended = Engine(model, small_tokenizer()).generate([prompt], replace(GREEDY, max_new_tokens=100))[0]
    assert ended.finish_reason == "length"
    assert len(prompt) + len(ended.token_ids) == 65  # the last one is drawn, and need not be read
    engine = Engine(model, small_tokenizer(), re_prefill_when_full=True)
    whole = generate(model, torch.tensor([prompt]), 100, temperature=0)[0, len(prompt) :].tolist()
    assert engine.generate([prompt, [3, 4]], replace(GREEDY, max_new_tokens=100))[0].token_ids == whole


def test_a_shared_beginning_is_read_once(model):
    system = texts(1, seed=9, longest=60)[0]
    system = (system * 40)[:40]
    prompts = [[*system, n, n + 1] for n in range(10, 16)]
    plain = Engine(model, small_tokenizer(), max_batch_size=4, reuse_prefixes=False)
    sharing = Engine(model, small_tokenizer(), max_batch_size=4)
    expected = [completion.token_ids for completion in plain.generate(prompts, GREEDY)]
    assert [completion.token_ids for completion in sharing.generate(prompts, GREEDY)] == expected
    assert sharing.stats().reused_tokens == 5 * 40
    assert plain.stats().prompt_tokens == sharing.stats().prompt_tokens + 5 * 40
    # The next turn of a conversation takes over the row of the last.
    sharing.add(prompts[-1] + expected[-1] + [7], replace(GREEDY, max_new_tokens=4), "turn")
    drain(sharing)
    assert sharing.stats().reused_tokens >= 5 * 40 + 42 + 11


def test_generate_follows_changed_weights(model, engine):
    before = engine.generate([[1, 2, 3]], GREEDY)[0].token_ids
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    after = engine.generate([[1, 2, 3]], GREEDY)[0].token_ids
    assert after != before
    assert after == generate(model, torch.tensor([[1, 2, 3]]), 12, temperature=0)[0, 3:].tolist()
    other = GPT(model.config)
    model.load_state_dict(other.state_dict(), assign=True)
    assert (
        engine.generate([[1, 2, 3]], GREEDY)[0].token_ids
        == generate(other, torch.tensor([[1, 2, 3]]), 12, temperature=0)[0, 3:].tolist()
    )


def test_an_engine_that_has_forgotten_is_freed_with_its_model(model):
    gc.collect()
    gc.disable()  # without looking for cycles
    try:
        copied = copy.deepcopy(model)
        engine = Engine(copied, small_tokenizer(), max_batch_size=4)
        engine.generate(texts(6), GREEDY)
        engine.forget()
        freed = [weakref.ref(copied), weakref.ref(engine)]
        del engine, copied
        assert [reference() for reference in freed] == [None, None]
    finally:
        gc.enable()


def test_an_interrupted_generate_leaves_an_engine_as_new(engine, monkeypatch):
    expected = engine.generate(texts(3), GREEDY)
    step, calls = engine.step, []

    def interrupted():
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(texts(3), GREEDY)
    assert not engine.has_work
    assert engine.generate(texts(3), GREEDY) == expected
    engine.add([1], GREEDY, "other")
    with pytest.raises(RuntimeError, match="1 other requests"):
        engine.generate([[1]], GREEDY)


def test_a_beginning_is_not_taken_from_a_text_that_was_read_again(model):
    long = (texts(1, seed=9, longest=60)[0] * 64)[:64]  # fills the context, so that its first token starts it afresh
    params = replace(GREEDY, max_new_tokens=6)
    plain = Engine(model, small_tokenizer(), max_batch_size=2, reuse_prefixes=False, re_prefill_when_full=True)
    sharing = Engine(model, small_tokenizer(), max_batch_size=2, re_prefill_when_full=True)
    prompts = [long, [*long[:40], 7]]
    expected = [completion.token_ids for completion in plain.generate(prompts, params)]
    assert [completion.token_ids for completion in sharing.generate(prompts, params)] == expected


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("guesses", [False, True])
def test_beginnings_are_shared_where_windows_are_still_there(chunked, guesses):
    config = replace(
        CONFIG, sliding_window=6, layer_windows=(True, False), chunked_window=chunked, tie_embeddings=False
    )
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    speculation = Speculation(PromptLookup(), 4) if guesses else None
    system = (texts(1, seed=9, longest=60)[0] * 40)[:20]
    prompts = [[*system, 3], [*system, 3], [*system, 4], system[:12], [*system, 3, 5, 6]]
    plain = Engine(model, small_tokenizer(), reuse_prefixes=False)
    sharing = Engine(model, small_tokenizer(), speculation=speculation)
    for prompt in [*prompts, *prompts]:
        expected = plain.generate([prompt], GREEDY)[0].token_ids
        sharing.add(prompt, GREEDY, "x")
        assert [event.token_id for event in drain(sharing)] == expected
        sharing.add([*prompt, *expected, 9], replace(GREEDY, max_new_tokens=3), "next turn")
        turn = plain.generate([[*prompt, *expected, 9]], replace(GREEDY, max_new_tokens=3))[0].token_ids
        assert [event.token_id for event in drain(sharing)] == turn
    assert sharing.stats().reused_tokens > 0


def test_training_goes_on_after_generating(model, engine):
    other = GPT(model.config)
    model.load_state_dict(other.state_dict(), assign=True)  # so that the engine lays it out again within a step
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        engine.generate([[1, 2, 3]], GREEDY)
        model(torch.tensor([[1, 2, 3]])).logsumexp(-1).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    ids = torch.tensor([[1, 2, 3]])
    assert engine.generate([[1, 2, 3]], GREEDY)[0].token_ids == generate(model, ids, 12, temperature=0)[0, 3:].tolist()


def test_the_mode_comes_back_and_parameters_stay(model):
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    engine = Engine(model, small_tokenizer())
    model.train()
    engine.generate([[1, 2, 3]], GREEDY)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_logprobs_are_the_models_own(model, engine):
    params = SamplingParams(max_new_tokens=6, temperature=0.5, top_k=3, seed=1, logprobs=4, ignore_eos=True)
    completion = engine.generate([[5, 6, 7]], params)[0]
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 7, *completion.token_ids]]))[0, 2:-1].log_softmax(-1)
    for row, token, logprob, tops in zip(
        expected, completion.token_ids, completion.logprobs, completion.top_logprobs, strict=True
    ):
        assert logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [index for index, _ in tops] == row.topk(4).indices.tolist()
        assert [value for _, value in tops] == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


def test_a_fault_in_one_request_ends_it_alone(engine):
    class Broken:
        def mask(self, logits):
            return logits

        def accept(self, token):
            raise ZeroDivisionError("broken")

    class Unmasked(Broken):
        def mask(self, logits):
            raise KeyError("no mask")

    engine.add([1, 2], GREEDY, "broken", Broken())
    engine.add([1, 2], GREEDY, "unmasked", Unmasked())
    engine.add([1, 2], GREEDY, "sound")
    events = drain(engine)
    ends = {event.request_id: event for event in events if event.finish_reason}
    assert ends["broken"].finish_reason == ends["unmasked"].finish_reason == "error"
    assert "broken" in ends["broken"].error
    assert len([event for event in events if event.request_id == "sound"]) == 12


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "no tokens"),
        ([1] * 65, {}, "65 tokens, more than the 64"),
        ([300], {}, "token 300 is outside"),
        ([-1], {}, "token -1 is outside"),
        ([1], {"logit_bias": {999: 1.0}}, "token 999"),
        ([1], {"stop_token_ids": (301,)}, "token 301"),
    ],
)
def test_refused_requests(engine, prompt, params, message):
    with pytest.raises(UserError, match=message):
        engine.add(prompt, SamplingParams(**params), "x")
    assert not engine.has_work


def test_an_id_may_be_used_once_at_a_time(engine):
    engine.add([1], GREEDY, "x")
    with pytest.raises(UserError, match="'x' is in use"):
        engine.add([1], GREEDY, "x")
    drain(engine)
    engine.add([1], GREEDY, "x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
        ({"cache_tokens": 0}, "cache_tokens is 0"),
        ({"max_length": 65}, "max_length 65 is longer than the model's block_size 64"),
        ({"max_length": 64, "cache_tokens": 32}, "cache_tokens 32"),
    ],
)
def test_refused_settings(model, settings, message):
    with pytest.raises(UserError, match=message):
        Engine(model, small_tokenizer(), **settings)


def test_the_cache_is_as_large_as_it_says(model):
    engine = Engine(model, small_tokenizer(), max_batch_size=4, cache_tokens=256)
    assert engine.stats().cache_bytes == 256 * 2 * 2 * 32 * 4  # tokens x layers x (keys, values) x width x bytes
    engine.generate(texts(4), GREEDY)
    assert sum(block.num_bytes() for block in engine._blocks) <= engine.stats().cache_bytes


@pytest.mark.parametrize("static", ["uncompiled", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "changes", [{}, {"sliding_window": 6, "layer_windows": (True, False)}, {"positions": "alibi"}], ids=str
)
def test_fixed_shapes_give_the_same_texts(static, changes, monkeypatch):
    if static == "uncompiled":
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    torch.manual_seed(0)
    model = GPT(replace(CONFIG, tie_embeddings=False, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    prompts = texts(5)
    expected = [completion.token_ids for completion in Engine(model, small_tokenizer()).generate(prompts, GREEDY)]
    engine = Engine(model, small_tokenizer(), max_batch_size=4, compile=True)
    assert [completion.token_ids for completion in engine.generate(prompts, GREEDY)] == expected
