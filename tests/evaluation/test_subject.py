"""The ways of asking a model."""

import pytest
from small_models import BLOCK, small_bundle

from lit_gpt.errors import UserError
from lit_gpt.evaluation.subject import draw_seed, load_subject
from lit_gpt.generation import generate
from lit_gpt.generation.request import SamplingParams

GREEDY = SamplingParams(max_new_tokens=5, temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(small_bundle(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def subject(folder):
    return load_subject(folder, max_batch_size=3)


def test_complete_opens_a_text_as_in_training(subject):
    import torch

    found = subject.complete(["def add", "One"], GREEDY)
    for text, completion in zip(["def add", "One"], found, strict=True):
        ids = [subject.tokenizer.separator_id, *subject.tokenizer.encode(text).tolist()]
        assert completion.prompt_ids == ids
        expected = generate(subject.model, torch.tensor([ids]), 5, temperature=0)[0, len(ids) :].tolist()
        assert completion.token_ids == expected[: len(completion.token_ids)]


def test_draws_depend_on_seed_and_place_alone(folder, subject):
    params = SamplingParams(max_new_tokens=6, temperature=1.0)
    texts = ["def"] * 7
    found = [one.token_ids for one in subject.complete(texts, params)]
    assert len(set(map(tuple, found))) > 1
    assert [one.token_ids for one in load_subject(folder, max_batch_size=1).complete(texts, params)] == found
    assert [one.token_ids for one in load_subject(folder, seed=1).complete(texts, params)] != found
    assert draw_seed(0, 1) != draw_seed(1, 0)


def test_progress_is_told(subject):
    told = []
    subject.complete(["a", "b"], GREEDY, lambda done, total: told.append((done, total)))
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_a_model_without_a_template_does_not_answer(subject):
    assert subject.renderer is None
    with pytest.raises(UserError, match="no chat template.*--chat_template"):
        subject.answer([[{"role": "user", "content": "Hi"}]], GREEDY)
    assert subject.respond(["Hi"], GREEDY)[0].prompt_ids == subject.complete(["Hi"], GREEDY)[0].prompt_ids


def test_a_template_is_used_and_its_stop_token_ends_an_answer(folder):
    chatty = load_subject(folder, chat_template="alpaca")
    (found,) = chatty.respond(["Hi"], GREEDY) if chatty.block_size > 60 else (None,)
    assert found is None or found.prompt_ids
    with pytest.raises(UserError, match="conversation 1: .*"):
        chatty.answer([[{"role": "nobody", "content": "Hi"}]], GREEDY)


def test_a_prompt_beyond_the_context_is_named_and_nothing_has_run(subject):
    with pytest.raises(UserError, match=r"prompt 2.*more than the 32"):
        subject.complete(["a", "b " * 2 * BLOCK], GREEDY)
    assert not subject.engine.has_work
    assert subject.complete(["a"], GREEDY)


def test_writing_ends_where_the_context_does(subject):
    (found,) = subject.complete(["a"], SamplingParams(max_new_tokens=500, temperature=0, ignore_eos=True))
    assert found.finish_reason == "length"
    assert len(found.prompt_ids) + len(found.token_ids) <= BLOCK + 1


def test_an_interrupted_measure_leaves_an_engine_as_new(subject):
    def stop(done, total):
        if done:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        subject.complete(["a", "b", "c", "d", "e"], GREEDY, stop)
    assert not subject.engine.has_work
    assert len(subject.generate([[1, 2], [3]], GREEDY)) == 2


def test_a_batch_size_of_zero(folder):
    with pytest.raises(UserError, match="max_batch_size is 0"):
        load_subject(folder, max_batch_size=0)
