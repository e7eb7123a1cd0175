"""Log-likelihoods with shared beginnings against one text after another through the plain forward."""

import numpy as np
import pytest
import torch

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evaluation.likelihood import LogLikelihoods, TextPairs
from lit_gpt.evaluation.prefix_trees import MIN_PREFIX, ScoredText, plan_trees
from lit_gpt.models import GPT, GPTConfig


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Tokenizer:
    """A token for each byte, and merges of spaces with letters, as published tokenizers have."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat and the dog and the hat sat on the mat"] * 4, trainer)
    return Tokenizer(backend)


def one_by_one(model: GPT, context: list[int], continuation: list[int]) -> tuple[list[float], bool]:
    """As lm-eval's `hf` model: the last block_size + 1 tokens, the continuation's from the logits of all."""
    whole = torch.tensor((context + continuation)[-(model.config.block_size + 1) :])
    with torch.no_grad():
        log_probs = model(whole[None, :-1])[0].double().log_softmax(-1)[-len(continuation) :]
    chosen = log_probs[torch.arange(len(continuation)), torch.tensor(continuation)]
    return chosen.tolist(), log_probs.argmax(-1).tolist() == continuation


def question_set(vocab_size: int) -> tuple[list[list[int]], list[list[int]]]:
    """A preamble before all, questions with several choices, some that begin alike, texts alone, and long ones."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> list[int]:
        return generator.integers(vocab_size, size=count).tolist()

    preamble = draw(MIN_PREFIX + 1)
    contexts, continuations = [], []
    for _ in range(6):
        question = preamble + draw(int(generator.integers(1, 5)))
        common = draw(2)
        for length in (1, 3, 5):
            contexts.append(question)
            continuations.append(common + draw(length))
        contexts.append(question)
        continuations.append(common)
    contexts += [draw(3), draw(70), draw(1), preamble]
    continuations += [draw(4), draw(9), draw(32), draw(1)]
    return contexts, continuations


@pytest.mark.parametrize("max_batch_tokens", [8, 64, 4096])
def test_every_architecture_shares_beginnings_exactly(packable_config, bytes_tokenizer, max_batch_tokens):
    model = GPT(packable_config)
    contexts, continuations = question_set(packable_config.vocab_size)
    asked = LogLikelihoods(model, bytes_tokenizer, max_batch_tokens)
    seen = []
    results = asked.of_ids(contexts, continuations, progress=lambda done, total: seen.append((done, total)))
    for context, continuation, result in zip(contexts, continuations, results, strict=True):
        expected, is_greedy = one_by_one(model.eval(), context, continuation)
        assert result.token_logprobs == pytest.approx(expected, abs=2e-5)
        assert result.logprob == pytest.approx(sum(expected), abs=1e-4)
        assert result.is_greedy == is_greedy
        assert result.num_tokens == len(continuation)
    assert seen[-1] == (len(contexts), len(contexts))


def test_shared_beginnings_are_computed_once(bytes_tokenizer):
    config = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=64, vocab_size=61)
    preamble = list(range(40))
    contexts = [[*preamble, question] for question in range(10) for _ in range(4)]
    continuations = [[20 + choice, 5, 6] for _ in range(10) for choice in range(4)]
    asked = LogLikelihoods(GPT(config), bytes_tokenizer, max_batch_tokens=128)
    asked.of_ids(contexts, continuations)
    # The preamble, ten last tokens of questions, and of each choice all but its last token.
    assert asked.num_computed_tokens == 40 + 10 + 10 * 4 * 2


def test_greedy_continuations_are_said_to_be_greedy(bytes_tokenizer):
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=32, vocab_size=61)).eval()
    ids = [3, 1, 4]
    for _ in range(6):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    other = [*ids[3:-1], (ids[-1] + 1) % 61]
    greedy, not_greedy = LogLikelihoods(model, bytes_tokenizer).of_ids([ids[:3]] * 2, [ids[3:], other])
    assert greedy.is_greedy
    assert not not_greedy.is_greedy


def test_the_mode_and_the_gradients_of_a_model_in_training_stay(bytes_tokenizer):
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=16, vocab_size=61, dropout=0.5)).train()
    asked = LogLikelihoods(model, bytes_tokenizer)
    first, second = (asked.of_ids([[1, 2]], [[3]])[0] for _ in range(2))
    assert first == second
    assert model.training
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()


@pytest.mark.parametrize(
    ("context", "continuation", "words"),
    [
        ([], [1], "context 2 has no tokens"),
        ([1], [], "continuation 2 has no tokens"),
        ([1], [2] * 17, "17 tokens, more than the model's block_size 16"),
        ([99], [1], "token 99, outside the model's vocabulary of 61"),
    ],
)
def test_what_cannot_be_asked_is_named(bytes_tokenizer, context, continuation, words):
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=16, vocab_size=61))
    with pytest.raises(UserError, match=words):
        LogLikelihoods(model, bytes_tokenizer).of_ids([[1], context], [[2], continuation])


def test_a_plan_holds_every_text_once_and_as_it_is():
    contexts, continuations = question_set(7)  # few tokens: many beginnings are alike by chance
    texts = [
        ScoredText(np.array([*context, *continuation[:-1]]), np.array(continuation))
        for context, continuation in zip(contexts, continuations, strict=True)
    ]
    found = []
    for stem, trees in plan_trees(texts, max_tokens=16):
        before, above = [], stem
        while above is not None:
            before, above = above.ids.tolist() + before, above.parent
        for tree in trees:
            for number, places in tree.predictions:
                last = places[-1]
                path = [j for j in range(last + 1) if last < tree.ends[j]]
                assert before + tree.ids[path].tolist() == texts[number].ids.tolist()
                assert tree.positions[path].tolist() == list(range(len(before), len(texts[number].ids)))
                assert path[-len(places) :] == places.tolist()
                found.append(number)
    assert sorted(found) == list(range(len(texts)))


def test_a_long_chain_of_beginnings_needs_no_recursion():
    whole = np.arange(3000)
    texts = [ScoredText(whole[:length], whole[length : length + 1]) for length in range(1, 2000)]
    numbers = [number for _, trees in plan_trees(texts, 64) for tree in trees for number, _ in tree.predictions]
    assert sorted(numbers) == list(range(len(texts)))


def test_texts_are_cut_as_the_harness_cuts_them(bytes_tokenizer):
    encode = lambda text: bytes_tokenizer.encode(text).tolist()  # noqa: E731
    opening = [bytes_tokenizer.separator_id]
    pairs = TextPairs(bytes_tokenizer).encode(
        [("on the", " mat"), ("on the ", "mat"), ("", "the cat"), ("on the m", "at and the cat")]
    )
    assert pairs[0] == pairs[1] == (opening + encode("on the"), encode("on the mat")[len(encode("on the")) :])
    assert pairs[2] == (opening, encode("the cat"))
    context, continuation = pairs[3]
    assert context == opening + encode("on the m")
    assert continuation == encode("on the mat and the cat")[len(encode("on the m")) :]


def test_a_continuation_that_its_context_swallows_is_encoded_alone(bytes_tokenizer):
    assert len(bytes_tokenizer.encode(" the")) == 1
    ((_, continuation),) = TextPairs(bytes_tokenizer).encode([(" th", "e")])
    assert continuation
    assert bytes_tokenizer.decode(continuation) == "e"


def test_special_tokens_are_tokens_only_where_a_template_writes_them(bytes_tokenizer):
    text = "<|endoftext|>the"
    separator = bytes_tokenizer.separator_id
    assert separator not in TextPairs(bytes_tokenizer).encode_texts([text])[0]
    parsing = TextPairs(bytes_tokenizer, parse_special=True)
    ids = parsing.encode_texts([text])[0]
    assert ids[0] == separator
    assert parsing.open(ids) == ids
    assert TextPairs(bytes_tokenizer, opening_ids=(), parse_special=True).open([]) == [separator]
