"""Many threads and tasks read one engine: everything arrives once, in order, and nothing hurts anybody else."""

import asyncio
import random
import threading
from dataclasses import replace

import pytest
from small_chats import small_tokenizer

from lit_gpt.errors import UserError
from lit_gpt.generation import Engine, EngineLoop, QueueFullError, SamplingParams
from lit_gpt.models import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=300)
PARAMS = SamplingParams(max_new_tokens=12, temperature=1.0, seed=3, ignore_eos=True)
WAIT = 60


def make_engine(**settings):
    model = GPT(CONFIG)
    model.init_weights(0)
    return Engine(model, small_tokenizer(), **{"max_batch_size": 4} | settings)


@pytest.fixture
def loop():
    with EngineLoop(make_engine()) as loop:
        yield loop


def test_results_are_those_of_the_engine(loop):
    prompts = [[n, n + 1] for n in range(1, 9)]
    handles = [loop.submit(prompt, PARAMS) for prompt in prompts]
    expected = make_engine().generate(prompts, PARAMS)
    for handle, completion in zip(handles, expected, strict=True):
        result = handle.result(WAIT)
        assert (result.token_ids, result.text, result.finish_reason) == (
            completion.token_ids,
            completion.text,
            "length",
        )


def test_threads_each_get_their_own_events(loop):
    found, errors = {}, []

    def client(number):
        rng = random.Random(number)
        try:
            handle = loop.submit([number + 1, 5], replace(PARAMS, seed=number, max_new_tokens=rng.randint(1, 20)))
            events = []
            for event in handle:
                events.append(event)
                if number % 3 == 0 and len(events) == 2:
                    handle.cancel()
            found[number] = (handle, events)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert not errors
    assert len(found) == 24
    for number, (handle, events) in found.items():
        assert {event.request_id for event in events} == {handle.request_id}
        assert [event.finish_reason is not None for event in events] == [False] * (len(events) - 1) + [True]
        if number % 3:
            assert events[-1].finish_reason == "length"
            assert len(events) == handle.params.max_new_tokens
    assert loop.stats().num_running == loop.stats().num_waiting == 0


def test_asyncio_tasks(loop):
    async def client(number):
        handle = loop.submit([number, 7], replace(PARAMS, seed=number))
        return [event.token_id async for event in handle]

    async def all_of_them():
        return await asyncio.wait_for(asyncio.gather(*(client(n) for n in range(1, 11))), WAIT)

    texts = asyncio.run(all_of_them())
    each = [replace(PARAMS, seed=n) for n in range(1, 11)]
    expected = make_engine().generate([[n, 7] for n in range(1, 11)], each)
    assert texts == [completion.token_ids for completion in expected]


def test_a_reader_that_leaves_an_event_loop_behind_hurts_nobody(loop):
    async def leave():
        handle = loop.submit([1, 2], replace(PARAMS, max_new_tokens=60))
        async for _ in handle:
            break
        return handle

    handle = asyncio.run(leave())
    assert loop.submit([1, 2], PARAMS).result(WAIT).finish_reason == "length"
    handle.cancel()


def test_the_queue_is_bounded():
    engine = make_engine(max_batch_size=1)
    gate, plain = threading.Event(), engine.step

    def step():
        gate.wait(WAIT)
        return plain()

    engine.step = step
    with EngineLoop(engine, max_waiting=2) as loop:
        handles = [loop.submit([1, 2], PARAMS) for _ in range(3)]
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            loop.submit([1, 2], PARAMS)
        assert loop.stats().num_waiting + loop.stats().num_running >= 1
        handles[0].cancel()
        gate.set()
        assert [handle.result(WAIT).finish_reason for handle in handles] == ["cancelled", "length", "length"]
        assert loop.submit([1, 2], PARAMS).result(WAIT).finish_reason == "length"


def test_a_bad_request_is_refused_where_it_is_submitted(loop):
    with pytest.raises(UserError, match="no tokens"):
        loop.submit([], PARAMS)
    assert loop.submit([1], PARAMS).result(WAIT).finish_reason == "length"


def test_an_id_in_use_is_refused():
    engine = make_engine()
    gate, plain = threading.Event(), engine.step
    engine.step = lambda: (gate.wait(WAIT), plain())[1]
    with EngineLoop(engine) as loop:
        loop.submit([1], PARAMS, "mine")
        with pytest.raises(RuntimeError, match="'mine' is in use"):
            loop.submit([1], PARAMS, "mine")
        gate.set()


def test_a_failed_forward_ends_what_ran_and_the_loop_goes_on():
    engine = make_engine()
    forward, failures = engine._forward, iter([True])

    def failing(plan):
        if next(failures, False):
            raise MemoryError("no room for this step")
        return forward(plan)

    engine._forward = failing
    with EngineLoop(engine) as loop:
        ended = loop.submit([1, 2], PARAMS).result(WAIT)
        assert (ended.finish_reason, ended.error) == ("error", "MemoryError: no room for this step")
        assert loop.submit([1, 2], PARAMS).result(WAIT).finish_reason == "length"
        assert loop.failure is None


def test_closing_drains_or_cancels():
    loop = EngineLoop(make_engine())
    handles = [loop.submit([n], PARAMS) for n in range(1, 9)]
    loop.close()
    assert [handle.result(0).finish_reason for handle in handles] == ["length"] * 8
    with pytest.raises(RuntimeError, match="closing"):
        loop.submit([1], PARAMS)
    loop.close()

    loop = EngineLoop(make_engine(max_batch_size=1))
    handles = [loop.submit([n], replace(PARAMS, max_new_tokens=60)) for n in range(1, 9)]
    loop.close(drain=False)
    assert {handle.result(0).finish_reason for handle in handles} <= {"cancelled", "length"}
    assert handles[-1].prompt_ids == [8]


def test_waiting_has_an_end():
    engine = make_engine()
    gate, plain = threading.Event(), engine.step
    engine.step = lambda: (gate.wait(WAIT), plain())[1]
    with EngineLoop(engine) as loop:
        handle = loop.submit([1], PARAMS)
        with pytest.raises(TimeoutError, match="has not finished"):
            handle.result(0.01)
        gate.set()
