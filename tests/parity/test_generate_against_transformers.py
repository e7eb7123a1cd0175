"""Greedy texts of a small Llama made by transformers, token for token."""

import pytest
import torch
from small_chats import small_tokenizer

from lit_gpt.checkpoints.huggingface import import_hf
from lit_gpt.generation import Engine, SamplingParams
from lit_gpt.models import GPT

NEW, TIE = 256, 1e-4


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            hidden_size=64,
            intermediate_size=128,
            vocab_size=300,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            eos_token_id=None,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)  # so that texts neither agree nor settle into loops
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder)
    config, state = import_hf(folder)
    ours = GPT(config)
    ours.load_state_dict(state)
    return theirs, ours.eval()


def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 300, (length,), generator=generator).tolist() for length in range(2, 42, 2)]


@pytest.fixture(scope="module")
def expected(pair):
    ids = [torch.tensor([prompt]) for prompt in prompts()]
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return [
        pair[0].generate(one, attention_mask=torch.ones_like(one), **settings)[0, one.shape[1] :].tolist()
        for one in ids
    ]


@pytest.mark.parametrize("batch_size", [1, 20])
def test_the_texts_of_transformers_generate(pair, expected, batch_size):
    theirs, ours = pair
    assert len({tuple(text) for text in expected}) == 20
    assert min(len(set(text)) for text in expected) > 20, "a text of few tokens would prove little"
    engine = Engine(ours, small_tokenizer(), max_batch_size=batch_size)
    params = SamplingParams(max_new_tokens=NEW, temperature=0, ignore_eos=True)
    parted = []
    for number, (completion, text) in enumerate(zip(engine.generate(prompts(), params), expected, strict=True)):
        assert len(completion.token_ids) == len(text) == NEW
        if completion.token_ids == text:
            continue
        place = next(i for i, (one, other) in enumerate(zip(completion.token_ids, text, strict=True)) if one != other)
        with torch.no_grad():
            best = theirs(torch.tensor([completion.prompt_ids + text[:place]])).logits[0, -1].topk(2).values
        gap = float(best[0] - best[1])
        assert gap <= TIE, f"prompt {number} parts at token {place}, where the best is {gap} ahead"
        parted.append(f"prompt {number} at token {place} (the two best within {gap:.1e})")
    print(f"batch of {batch_size}: {20 - len(parted)} of 20 texts agree in all {NEW} tokens; ties: {parted or 'none'}")
