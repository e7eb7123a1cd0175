"""A package of somebody else's brings a recurrent layer: mixed with attention by config, trained, decoded, evaluated."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from small_chats import small_tokenizer

from lit_gpt.errors import UserError
from lit_gpt.evaluation.likelihood import LogLikelihoods
from lit_gpt.generation import DraftModel, Engine, PromptLookup, SamplingParams, Speculation
from lit_gpt.models import GPT, Cache, GPTConfig

PACKAGE = Path(__file__).parent / "package"
GREEDY = SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True, logprobs=0)
PATTERNS = [("gated_linear",), ("gated_linear", "attention"), ("gated_linear", "sliding", "attention")]


@pytest.fixture(scope="module", autouse=True)
def layer():
    """The package as an import, its layer registered."""
    sys.path.insert(0, str(PACKAGE))
    from acme_lm import linear

    yield linear
    sys.path.remove(str(PACKAGE))


@pytest.fixture(params=PATTERNS, ids="-".join)
def config(request):
    pattern = request.param
    return GPTConfig(
        n_layer=3,
        n_head=4,
        n_embd=32,
        block_size=64,
        vocab_size=300,
        bias=False,
        norm="rmsnorm",
        positions="rope",
        mlp="swiglu",
        tie_embeddings=False,
        layer_types=pattern,
        sliding_window=6 if "sliding" in pattern else None,
        mixer_options={"gated_linear": {"num_heads": 4}},
    )


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return model


def prompts():
    rng = random.Random(0)
    texts = [[rng.randrange(1, 300) for _ in range(length)] for length in (3, 40, 1, 17, 30)]
    return [*texts, [*texts[1][:20], 5, 6], list(texts[1])]


# ---- the layer itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 15, 16, 17, 50])
def test_both_forms_are_a_naive_loop(layer, T):
    torch.manual_seed(T)
    q, k, v = (torch.randn(2, T, 3, 4, dtype=torch.float64) for _ in range(3))
    log_decay = torch.nn.functional.logsigmoid(torch.randn(2, T, 3, dtype=torch.float64))
    matrix = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected, last = torch.zeros(2, T, 3, 4, dtype=torch.float64), matrix.clone()
    for b in range(2):
        for h in range(3):
            S = matrix[b, h].clone()
            for t in range(T):
                for i in range(4):
                    for j in range(4):
                        S[i, j] = log_decay[b, t, h].exp() * S[i, j] + k[b, t, h, i] * v[b, t, h, j]
                expected[b, t, h] = sum(q[b, t, h, i] * S[i] for i in range(4))
            last[b, h] = S
    for form in (layer.one_by_one, layer.in_chunks):
        y, after = form(q, k, v, log_decay, matrix)
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(after, last, rtol=1e-9, atol=1e-9)


def test_it_is_counted_and_survives_a_round_trip(config):
    model = GPT(config)
    assert config.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.flops_per_token() > 6 * config.num_parameters(embeddings=False)
    kinds = [type(block.attn).__name__ for block in model.blocks]
    assert kinds[0] == "GatedLinear"
    bias = model.blocks[0].attn.decay_proj.bias
    assert torch.equal(bias, torch.linspace(1.0, 4.0, 4)), "its own initial value"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ("gated_liner",)}, "gated_liner.*gated_linear"),
        ({"mixer_options": {"gated_linear": {"heads": 2}}}, "heads.*num_heads"),
        ({"mixer_options": {"gated_linear": {"num_heads": 0}}}, "num_heads is 0"),
        ({"mixer_options": {"other": {}}}, "other"),
        ({"layer_types": ()}, "layer_types"),
        ({"layer_types": ("gated_linear", "sliding")}, "sliding_window"),
        ({"layer_types": ("gated_linear", "latent")}, "mla"),
        ({"layer_types": ("gated_linear",), "layer_windows": (True,), "sliding_window": 4}, "layer_windows"),
    ],
)
def test_refused(changes, message):
    shape = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, layer_types=("gated_linear",))
    with pytest.raises(UserError, match=message):
        replace(shape, **changes)


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.fixture
def packed():
    """ids, position_ids, document_ids (2, 40): documents that begin inside and at the edges of chunks of 16."""
    lengths = [(9, 7, 14, 10), (20, 1, 13)]
    ids = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    positions, documents = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, row_lengths in enumerate(lengths):
        start = 0
        for number, length in enumerate(row_lengths):
            positions[row, start : start + length] = torch.arange(length)
            documents[row, start : start + length] = number
            start += length
    return ids, positions, documents


@torch.no_grad()
def test_packed_documents_are_isolated_to_the_bit(model, packed):
    ids, positions, documents = packed
    before = model(ids, positions, documents)
    for row in range(2):
        for number in documents[row].unique().tolist():
            inside = torch.zeros_like(documents, dtype=torch.bool)
            inside[row] = documents[row] == number
            changed = torch.where(inside, (ids + 1) % 300, ids)
            after = model(changed, positions, documents)
            assert torch.equal(before[~inside], after[~inside])
            assert (before[inside] != after[inside]).any()
            if number >= 0:
                alone = model(ids[row][inside[row]][None])[0]
                torch.testing.assert_close(alone, before[inside], rtol=1e-4, atol=1e-4)


def test_recomputing_activations_gives_the_same_gradients(model, packed):
    gradients = []
    for recompute in (False, True):
        model.gradient_checkpointing = recompute
        model.zero_grad()
        model(*packed).logsumexp(-1).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


# ---- decoding ------------------------------------------------------------------------------------------------------


def check(model, completion):
    """Each token is the likeliest of a whole forward, with the same log-probability."""
    prompt, new = completion.prompt_ids, completion.token_ids
    with torch.no_grad():
        expected = model(torch.tensor([prompt + new])[:, :-1])[0, len(prompt) - 1 :].log_softmax(-1)
    drawn = expected.gather(1, torch.tensor(new)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.logprobs), drawn, rtol=0, atol=1e-4)
    assert (expected.max(-1).values - drawn <= 1e-4).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_size": 1},
        {"max_batch_size": 8},
        {"max_batch_size": 8, "prefill_chunk": 7},
        {"max_batch_size": 3, "prefill_chunk": 9, "cache_tokens": 128},
        {"max_batch_size": 8, "compile": True},
    ],
    ids=str,
)
def test_every_way_of_running_is_the_whole_forward(model, settings, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # fixed shapes, uncompiled
    engine = Engine(model, small_tokenizer(), **settings)
    for _ in range(2):  # the second time rows were used before
        for completion in engine.generate(prompts(), GREEDY):
            check(model, completion)


def drain(engine, events):
    while engine.has_work:
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event.token_id)


def test_a_prefix_is_reused_where_a_row_stands_at_its_end(model):
    engine, plain = Engine(model, small_tokenizer()), Engine(model, small_tokenizer(), reuse_prefixes=False)
    first, events = prompts()[1], {}
    engine.add(first, GREEDY, "first")
    drain(engine, events)
    expected = plain.generate([first], GREEDY)[0].token_ids
    assert events["first"] == expected
    turn = [*first, *expected, 7, 8]
    engine.add(turn, replace(GREEDY, max_new_tokens=5), "turn")
    engine.add([*first[:20], 9], GREEDY, "shorter")  # the state after 20 tokens is gone: computed again
    drain(engine, events)
    assert events["turn"] == plain.generate([turn], replace(GREEDY, max_new_tokens=5))[0].token_ids
    assert events["shorter"] == plain.generate([[*first[:20], 9]], GREEDY)[0].token_ids
    assert engine.stats().reused_tokens == len(first) + len(expected) - 1, "all that was cached, by the turn alone"


def test_a_full_context_starts_afresh(model):
    prompt = prompts()[4]
    params = replace(GREEDY, max_new_tokens=60)
    engine = Engine(model, small_tokenizer(), re_prefill_when_full=True)
    (completion,) = engine.generate([prompt], params)
    context, expected = list(prompt), []
    with torch.no_grad():
        for _ in range(60):
            if len(context) > 64:
                context = context[-32:]
            expected.append(int(model(torch.tensor([context]))[0, -1].argmax()))
            context.append(expected[-1])
    assert completion.token_ids == expected


def test_random_arrivals_and_cancellations_leave_no_trace(model):
    rng = random.Random(1)
    engine = Engine(model, small_tokenizer(), max_batch_size=3, prefill_chunk=5, cache_tokens=160)
    plain = Engine(model, small_tokenizer(), max_batch_size=1, reuse_prefixes=False)
    texts = [[rng.randrange(1, 300) for _ in range(rng.randint(1, 30))] for _ in range(12)]
    events, waiting = {}, list(enumerate(texts))
    cancelled = set()
    while waiting or engine.has_work:
        for number, text in waiting[:2]:
            engine.add(text, GREEDY, str(number))
            events[str(number)] = []
        waiting = waiting[2:]
        if rng.random() < 0.1:
            gone = rng.choice(list(events))
            cancelled.add(gone)
            engine.cancel(gone)
        for event in engine.step():
            events[event.request_id].append(event.token_id)
    for number, text in enumerate(texts):
        if str(number) not in cancelled:
            assert events[str(number)] == plain.generate([text], GREEDY)[0].token_ids


def test_speculation_is_refused(model):
    with pytest.raises(UserError, match="speculation.*gated_linear"):
        Engine(model, small_tokenizer(), speculation=Speculation(PromptLookup()))
    with pytest.raises(UserError, match="draft_model"):
        DraftModel(model)
    cache = Cache(model, 1)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), cache=cache.step(3))
    with pytest.raises(UserError, match="recurrent"):
        cache.truncate(2)


def test_cache_bytes_have_a_fixed_part_for_every_row(model, config):
    engine = Engine(model, small_tokenizer(), max_batch_size=4, cache_tokens=256)
    row = {"gated_linear": 4 * 8 * 8 * 4, "attention": 64 * 2 * 32 * 4, "sliding": (6 + 1) * 2 * 32 * 4}
    assert engine.stats().cache_bytes == 4 * sum(row[config.token_mixer(layer)] for layer in range(3))
    engine.generate(prompts()[:4], GREEDY)
    assert sum(block.num_bytes() for block in engine._blocks) <= engine.stats().cache_bytes


# ---- evaluation ----------------------------------------------------------------------------------------------------


def test_likelihoods_are_those_of_one_text_after_another(model):
    stem = prompts()[1][:30]
    contexts = [stem, stem, [*stem, 4], [9]]
    continuations = [[5, 6], [7], [8, 9, 10], [3, 3]]
    found = LogLikelihoods(model, small_tokenizer()).of_ids(contexts, continuations)
    for context, continuation, result in zip(contexts, continuations, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([context + continuation])[:, :-1])[0, len(context) - 1 :].log_softmax(-1)
        expected = logits.gather(1, torch.tensor(continuation)[:, None]).sum().item()
        assert result.logprob == pytest.approx(expected, abs=1e-4)


# ---- the command line ----------------------------------------------------------------------------------------------

FIT = {
    "seed_everything": 7,
    "trainer": {
        "name": "run",
        "max_steps": 8,
        "accelerator": "cpu",
        "val_check_interval": 4,
        "callbacks": [{"class_path": "RunCheckpoint", "init_args": {"every_n_steps": 4, "keep_last": 9}}],
    },
    "model": {
        "class_path": "PretrainModule",
        "init_args": {
            "preset": "tiny",
            "overrides": {
                "n_layer": 2,
                "n_head": 2,
                "n_embd": 32,
                "intermediate_size": 64,
                "layer_types": ["gated_linear", "attention"],
                "mixer_options": {"gated_linear": {"num_heads": 2}},
            },
        },
    },
    "data": {
        "class_path": "TextDataModule",
        "init_args": {"block_size": 32, "global_batch_size": 8, "vocab_size": 300, "val_fraction": 0.2, "test_fraction": 0.1},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The package installed into a folder of its own, with its entry point."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "package"
    subprocess.run(["cp", "-r", str(PACKAGE), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


@pytest.mark.slow
def test_it_trains_resumes_exactly_and_is_evaluated_from_the_command_line(site, tmp_path):
    from lit_gpt.checkpoints.resolve import resolve_model

    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        words = " ".join(f"{(number * 37 + k * k) % 101}:{k % 7}" for k in range(30))
        (texts / f"{number:02}.txt").write_text(f"Text {number}. {words}\n")

    def run(*words):
        search = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": search, "LIT_GPT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}  # fmt: skip
        command = [sys.executable, "-m", "lit_gpt", *map(str, words)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fit(root, *more):
        config = json.loads(json.dumps(FIT))
        config["trainer"]["default_root_dir"] = str(tmp_path / root)
        config["data"]["init_args"]["files"] = str(texts)
        path = tmp_path / f"{root}.yaml"
        path.write_text(yaml.safe_dump(config))
        run("fit", "--config", path, *more)
        return tmp_path / root / "run"

    whole = fit("whole")
    stopped = fit("stopped", "--trainer.max_steps", "4")
    fit("stopped", "--ckpt_path", stopped / "checkpoints" / "step-00000004.ckpt")
    one, other = (resolve_model(str(folder)).load_state_dict() for folder in (whole, stopped))
    assert any("decay_proj" in name for name in one)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    quiz = tmp_path / "quiz.jsonl"
    rows = [{"question": f"{n} + 1 =", "choices": [str(n + 1), str(n)], "answer": "A"} for n in range(6)]
    quiz.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = {
        "measures": [{"class_path": "Harness", "init_args": {"tasks": ["quiz"], "data": {"quiz": str(quiz)}}}]
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    run("evaluate", "--model", whole, "--config", tmp_path / "plan.yaml", "--out", tmp_path / "report")
    assert "quiz" in (tmp_path / "report" / "report.json").read_text()
    assert run("generate", "--model", whole, "--prompt", "Text 3.", "--max_new_tokens", "8").startswith("Text 3.")
