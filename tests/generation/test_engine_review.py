"""What a hostile reading of the engine found: forms that take for ever, drafts of another size, lost ends."""

import threading

import pytest
import torch

from lit_gpt.data.bpe import train_bpe
from lit_gpt.errors import UserError
from lit_gpt.generation import Constraint, Engine, EngineLoop, SamplingParams, Speculation
from lit_gpt.generation import engine as engine_module
from lit_gpt.generation.constraints import compile_constraint
from lit_gpt.generation.sampler import candidates
from lit_gpt.generation.speculative import DraftModel
from lit_gpt.models import GPT, GPTConfig

TOKENIZER = train_bpe(["def add(a, b):\n    return a + b\n"] * 5, 300)


def small(vocab_size: int = 300, seed: int = 0, block_size: int = 128) -> GPT:
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=block_size, vocab_size=vocab_size, positions="rope")
    model = GPT(config)
    model.init_weights(seed)
    return model.eval()


@pytest.mark.parametrize(
    "form",
    [
        Constraint("json_schema", {"type": "integer", "multipleOf": 999983}),
        Constraint("json_schema", {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (97, 89, 83, 79)]}),
        Constraint("json_schema", '{"type": "integer", "multiple\\u004ff": 999983}'),
        Constraint("grammar", 'start: x\nx: %json {"type": "integer", "multipleOf": 999983}'),
    ],
)
def test_multiples_that_take_for_ever_are_refused(form):
    with pytest.raises(UserError, match="multiple"):
        compile_constraint(form)


def test_ordinary_multiples_are_taken():
    schema = {
        "properties": {"price": {"type": "number", "multipleOf": 0.01}, "n": {"type": "integer", "multipleOf": 5}}
    }
    assert "multipleOf" in compile_constraint(Constraint("json_schema", schema))


@pytest.mark.parametrize(
    "form", [Constraint("grammar", "start: start"), Constraint("json_schema", {"$ref": "#"})], ids=["grammar", "schema"]
)
def test_a_form_that_no_text_has_is_refused(form):
    with pytest.raises(UserError, match="no text|cannot|no finite value"):
        Engine(small(), TOKENIZER).check([1], SamplingParams(constraint=form))


def test_a_form_is_built_by_who_submits_it_and_not_by_the_engines_thread(monkeypatch):
    builders = []
    build = engine_module.build_matcher

    def noted(*arguments):
        builders.append(threading.current_thread())
        return build(*arguments)

    monkeypatch.setattr(engine_module, "build_matcher", noted)
    with EngineLoop(Engine(small(), TOKENIZER)) as loop:
        params = SamplingParams(max_new_tokens=8, constraint=Constraint("regex", "ab"))
        assert loop.submit([1, 2], params).result(30).text == "ab"
    assert builders == [threading.current_thread()]


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-40, 5e-324])
@pytest.mark.parametrize("top_p", [None, 0.9])
def test_next_to_no_temperature_takes_the_likeliest(temperature, top_p):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 30
    values, ids = candidates(logits, [SamplingParams(temperature=temperature, top_p=top_p)])
    best = int(values.softmax(-1).argmax())
    assert values.softmax(-1).max() == 1
    assert (best if ids is None else int(ids[0, best])) == int(logits.argmax())


@pytest.mark.parametrize("sizes", [(300, 400), (400, 300)])
def test_a_draft_with_another_padding_changes_nothing(sizes):
    """The larger vocabulary's padding is as likely as its tokens, here."""
    model, draft = small(sizes[0]), small(sizes[1], seed=3)
    params = SamplingParams(max_new_tokens=40, temperature=1.5, seed=5, ignore_eos=True)
    prompts = [[5, 6, 7], [9, 8]]
    alone = Engine(model, TOKENIZER).generate(prompts, params)
    guessed = Engine(model, TOKENIZER, speculation=Speculation(DraftModel(draft), 4)).generate(prompts, params)
    assert [one.finish_reason for one in guessed] == ["length", "length"]
    assert [one.token_ids for one in guessed] == [one.token_ids for one in alone]


def test_a_draft_keeps_nothing_of_ended_requests_and_room_for_their_length_alone():
    proposer = DraftModel(small(seed=3))
    engine = Engine(small(), TOKENIZER, max_batch_size=4, cache_tokens=128, speculation=Speculation(proposer, 2))
    params = SamplingParams(max_new_tokens=12, seed=1, ignore_eos=True)
    for number in range(6):
        engine.add([number + 1] * 10, params, str(number))
        while engine.has_work:
            engine.step()
    assert len(proposer._states) == 1
    ((cache, _),) = proposer._states.values()
    assert cache.max_length <= 22


def test_a_cancelled_request_is_told_of_its_end_when_the_next_step_fails(monkeypatch):
    engine = Engine(small(), TOKENIZER)
    params = SamplingParams(max_new_tokens=50, ignore_eos=True)
    for name in ("left", "other"):
        engine.add([1, 2, 3], params, name)
    engine.step()
    engine.cancel("left")

    def broken(plan):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_forward", broken)
        with pytest.raises(MemoryError):
            engine.step()
    ends = {event.request_id: event.finish_reason for event in engine.fail_all("no room")}
    assert ends == {"left": "cancelled", "other": "error"}
    assert not engine.has_work
    assert engine.step() == []
