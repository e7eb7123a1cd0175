"""The order of training samples is a pure function of (data, seed, step): not of workers, ranks or interruptions."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_texts import make_texts

from lit_gpt.batch import StepBatch
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.loader import Mixture, StepLoader, WindowSteps
from lit_gpt.data.mixture import MixtureSampler, Phase
from lit_gpt.data.sampler import WindowSampler, hash_integers
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.errors import UserError

T, G = 16, 8


@pytest.fixture
def corpus(make_corpus: Callable[..., TokenCorpus]) -> TokenCorpus:
    return make_corpus(make_texts(60, seed=1))


def loader(corpus: TokenCorpus, **kwargs) -> StepLoader:
    settings = {"block_size": T, "global_batch_size": G, "micro_batch_size": G, "seed": 3, "num_workers": 0} | kwargs
    block_size, seed, num_workers = (settings.pop(name) for name in ("block_size", "seed", "num_workers"))
    order = Mixture(None, [corpus.split("train")], None, block_size, seed)
    builder = BatchBuilder(corpus.separator_id, corpus.byte_lengths, True)
    return StepLoader(WindowSteps(order, builder, **settings), num_workers)


def endless(made: StepLoader) -> itertools.chain[StepBatch]:
    return itertools.chain.from_iterable(iter(made) for _ in itertools.count())


def steps(made: StepLoader, count: int) -> list[list[tuple[int, tuple[int, ...]]]]:
    """(sample id, tokens) of each sequence, for `count` steps over as many epochs as it takes."""
    return [
        [
            (int(sample), tuple(row.tolist()))
            for batch in step
            for sample, row in zip(batch["sample_ids"], batch["input_ids"], strict=True)
        ]
        for step in itertools.islice(endless(made), count)
    ]


def test_samples_are_the_windows_that_the_sampler_names(corpus: TokenCorpus) -> None:
    split = corpus.split("train")
    sampler = WindowSampler(split.num_tokens, T, seed=3)
    count = 3 * len(loader(corpus)) + 2
    for step, sequences in enumerate(steps(loader(corpus), count)):
        assert [sample for sample, _ in sequences] == list(range(step * G, (step + 1) * G))
        starts = sampler.starts(np.arange(step * G, (step + 1) * G))
        assert [row for _, row in sequences] == [tuple(split.read(int(s), T).tolist()) for s in starts]


def test_an_epoch_is_as_long_as_it_says(corpus: TokenCorpus) -> None:
    made = loader(corpus)
    assert len(made) == corpus.split("train").num_tokens // T // G
    assert len(list(made)) == len(list(made)) == len(made)
    assert made.state_dict()["position"] == 2 * len(made) * G
    assert len(loader(corpus, global_batch_size=4096, micro_batch_size=4096)) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact(corpus: TokenCorpus, num_workers: int) -> None:
    length = len(loader(corpus))
    expected = steps(loader(corpus), 2 * length + 3)
    # Inside an epoch, right at its end, and inside the next; each resume saves again.
    for stops in ([1], [5, 7], [length], [length + 2], [3, length, 2 * length]):
        seen: list = []
        state = loader(corpus).state_dict()
        for stop in [*stops, len(expected)]:
            made = loader(corpus, num_workers=num_workers)
            made.load_state_dict(state)
            for step in endless(made):
                # The Trainer saves while it works on a step: that step is counted.
                state = made.state_dict()
                seen.append([int(sample) for batch in step for sample in batch["sample_ids"]])
                if len(seen) == stop:
                    break
        assert seen == [[sample for sample, _ in step] for step in expected]
        assert steps(_resumed(corpus, state, num_workers), 1) == steps(_resumed(corpus, state, 0), 1)


def _resumed(corpus: TokenCorpus, state: dict, num_workers: int) -> StepLoader:
    made = loader(corpus, num_workers=num_workers)
    made.load_state_dict(state)
    return made


def test_a_pass_is_as_long_as_any_other_wherever_it_begins(corpus: TokenCorpus) -> None:
    """The Trainer counts the steps of an epoch; a pass that ended before it would cut the epoch short."""
    made = loader(corpus)
    made.load_state_dict(made.state_dict() | {"position": 5 * G})
    assert len(list(made)) == len(made)
    assert made.state_dict()["position"] == (5 + len(made)) * G


def test_steps_can_be_repeated(corpus: TokenCorpus) -> None:
    expected = steps(loader(corpus), 2)
    made = StepLoader(loader(corpus).steps, repeat_steps=2)
    assert steps(made, 2 * len(made) + 1) == [expected[step % 2] for step in range(2 * len(made) + 1)]
    assert made.state_dict()["position"] == (2 * len(made) + 1) * G


def test_a_mixture_of_one_is_the_corpus(corpus: TokenCorpus) -> None:
    """One code path: a named corpus alone differs in nothing but its seed and its name in the batch."""
    split, builder = corpus.split("train"), BatchBuilder(corpus.separator_id, corpus.byte_lengths, True)
    named = Mixture(["web"], [split], MixtureSampler([Phase(0, (1.0,))], [None]), T, seed=3)
    single = Mixture(None, [split], None, T, seed=hash_integers(3, 0))
    for step in (0, 1, 63, 64, 1000):
        (batch,), (same,) = (WindowSteps(order, builder, G, G)[step] for order in (named, single))
        assert batch.pop("corpus_ids").tolist() == [0] * G
        assert batch.keys() == same.keys()
        assert all(torch.equal(batch[key], same[key]) for key in batch)


def test_one_two_one_ranks_take_the_same_samples_in_the_same_order(corpus: TokenCorpus) -> None:
    expected = steps(loader(corpus), 12)
    state = loader(corpus).state_dict()
    seen = []
    for world_size, count in ((1, 3), (2, 5), (1, 1), (4, 3)):
        ranks = [loader(corpus, rank=r, world_size=world_size, micro_batch_size=2) for r in range(world_size)]
        for made in ranks:
            made.load_state_dict(state)  # only rank 0's state is saved, all load it
        for shares in zip(*(steps(made, count) for made in ranks), strict=True):
            seen.append([sequence for share in shares for sequence in share])
        states = [made.state_dict() for made in ranks]
        assert all(s == states[0] for s in states)
        state = states[0]
    assert seen == expected


def test_micro_batches_and_workers_change_no_sample(corpus: TokenCorpus) -> None:
    expected = steps(loader(corpus), 7)
    for micro, workers in ((1, 0), (2, 2), (4, 1)):
        made = loader(corpus, micro_batch_size=micro, num_workers=workers)
        assert len(next(iter(made))) == G // micro
        assert steps(loader(corpus, micro_batch_size=micro, num_workers=workers), 7) == expected


def test_the_global_generator_is_left_alone(corpus: TokenCorpus) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        next(iter(loader(corpus, num_workers=workers)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_checkpoint_of_another_order_is_refused(corpus: TokenCorpus, make_corpus: Callable[..., TokenCorpus]) -> None:
    state = loader(corpus).state_dict()
    for changed in ({"seed": 4}, {"block_size": 8}, {"global_batch_size": 4, "micro_batch_size": 4}):
        key, value = next(iter(changed.items()))
        with pytest.raises(UserError, match=f"{key} {state[key]}, this run has {value}"):
            loader(corpus, **changed).load_state_dict(state)
    other = make_corpus(make_texts(60, seed=2))
    with pytest.raises(UserError, match="trained with corpus"):
        loader(other).load_state_dict(state)
    del state["corpus"]  # as the checkpoint of a mixture has none
    with pytest.raises(UserError, match="records no corpus.*init_from"):
        loader(corpus).load_state_dict(state)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"world_size": 3}, "global_batch_size 8 cannot be shared evenly by 3 devices; set it to 6 or 9"),
        ({"world_size": 16}, "set it to 16"),
        ({"micro_batch_size": 3}, "micro_batch_size 3 does not divide the 8 sequences .* set it to 2 or 4, or to auto"),
        ({"micro_batch_size": 8, "world_size": 2}, "does not divide the 4 sequences"),
        ({"block_size": 10**6}, "fewer than one window of block_size 1000000"),
    ],
)
def test_sizes_that_do_not_fit(corpus: TokenCorpus, sizes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loader(corpus, **sizes)
