"""Groups of one prompt each, under one header: every prompt is read once, though its first reader waits itself."""

import pytest
import torch
from small_chats import small_tokenizer

from lit_gpt.generation import Engine, SamplingParams
from lit_gpt.models import GPT, GPTConfig

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 96, "vocab_size": 300}


@pytest.mark.parametrize("prefill_chunk", [512, 16])
@pytest.mark.parametrize("max_batch_size", [12, 5])
def test_each_prompt_is_read_once(prefill_chunk, max_batch_size):
    torch.manual_seed(0)
    model = GPT(GPTConfig.from_preset("tiny", **SHAPE)).eval()
    draw = torch.Generator().manual_seed(1)
    header = torch.randint(3, 290, (10,), generator=draw).tolist()
    own = [torch.randint(3, 290, (30 + group,), generator=draw).tolist() for group in range(3)]
    prompts = [[*header, *rest] for rest in own for _ in range(4)]
    params = [SamplingParams(max_new_tokens=8, temperature=1.0, seed=n, ignore_eos=True) for n in range(12)]
    plain = Engine(model, small_tokenizer(), max_batch_size=max_batch_size, reuse_prefixes=False)
    expected = [completion.token_ids for completion in plain.generate(prompts, params)]
    engine = Engine(
        model, small_tokenizer(), max_batch_size=max_batch_size, prefill_chunk=prefill_chunk, reuse_prefixes=True
    )
    assert [completion.token_ids for completion in engine.generate(prompts, params)] == expected
    # The whole first prompt, what the others have beyond the header, and the last token of each further answer's.
    if max_batch_size == 12:
        assert engine.stats().prompt_tokens <= len(prompts[0]) + sum(map(len, own[1:])) + 9
    assert engine.stats().reused_tokens >= 9 * 39
