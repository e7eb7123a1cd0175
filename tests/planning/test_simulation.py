"""The simulated step against tensors that exist: a real step under the same tracker, and sums by hand."""

import gc

import numpy as np
import pytest
import torch

from lit_gpt.adapters import AdapterConfig
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.data.batches import RowBatchBuilder
from lit_gpt.datamodules.preference import PairCollator
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import DPOModule, PretrainModule
from lit_gpt.parallel import Layout
from lit_gpt.planning import simulation
from lit_gpt.planning.allocators import MIB, process_memory, reserved_cuda
from lit_gpt.planning.simulation import simulate_step
from lit_gpt.planning.tracker import Collective, Tracker
from lit_gpt.plans import _LongestRows

SHAPE = {"n_layer": 2, "n_head": 4, "n_embd": 32, "intermediate_size": 64}
V, T, B = 96, 32, 4
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}
MLA = {"kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
CASES = {
    "dense": {},
    "packed": {"documents": True},
    "recomputed": {"activation_checkpointing": True},
    "accumulated": {"micro_batches": 2},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "mixture": {"overrides": {"moe": MOE}},
    "latent": {"overrides": {"mla": MLA, "qk_norm": None}},
}


def module(overrides=None, **options):
    shape = SHAPE | (overrides or {})
    return PretrainModule(preset="tiny", vocab_size=V, block_size=T, overrides=shape, **options)


def batch(documents=False):
    ids = torch.randint(0, V, (B, T))
    values = {"input_ids": ids, "labels": ids.clone(), "position_ids": torch.arange(T).expand(B, T).clone()}
    return values | ({"document_ids": (torch.arange(T) // 10).expand(B, T).clone()} if documents else {})


def real_peak(model, batches, precision):
    """Peak of the tensors of a step that is really computed, seen by a tracker of its own."""
    weights, autocast = simulation.PRECISIONS[precision]
    model.trainer = simulation._Trainer(Layout(), None, 1, 0)
    torch.set_default_dtype(weights)
    model.configure_model()
    torch.set_default_dtype(torch.float32)
    model.train()
    optimizer = model.configure_optimizers()["optimizer"]
    model.trainer.optimizers = [optimizer]
    model.on_train_start()
    tracker = Tracker(model, optimizer)
    gc.collect()
    with tracker:
        tracker.hold("activations", batches)
        for _ in range(2):
            tracker.begin_step()
            simulation._train(model, optimizer, batches, autocast, True)
    return tracker.result(Layout())


@pytest.mark.filterwarnings("ignore:this model could not be exported")
@pytest.mark.parametrize("name", CASES)
def test_a_simulated_step_takes_what_a_real_one_takes(name):
    options = dict(CASES[name])
    precision = options.pop("precision", "32-true")
    batches = [batch(options.pop("documents", False)) for _ in range(options.pop("micro_batches", 1))]
    forecast = simulate_step(module(**options), batches, precision)
    real = real_peak(module(**options), batches, precision)
    assert forecast.peak_bytes == pytest.approx(real.peak_bytes, rel=0.02)
    assert forecast.upper_bytes >= real.peak_bytes
    assert forecast.num_parameters == real.num_parameters
    assert forecast.work.flops == real.work.flops


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    config = GPTConfig.from_preset("tiny", vocab_size=V, block_size=T, **SHAPE)
    folder = tmp_path_factory.mktemp("bundle") / "base"
    return str(save_bundle(folder, config, GPT(config).state_dict()))


@pytest.mark.parametrize("name", ["lora", "dpo", "dpo with lora"])
def test_adapters_and_references_are_seen(base, name):
    adapter = {"adapter": AdapterConfig(rank=4)} if "lora" in name else {}
    kind = DPOModule if "dpo" in name else PretrainModule
    rows = _LongestRows(T, V)
    pair = PairCollator(RowBatchBuilder(0, np.ones(V, np.int64)))(
        rows, [np.array([row]) for row in range(B)], np.arange(B)
    )
    batches = [dict(pair)] if "dpo" in name else [batch()]
    forecast = simulate_step(kind(init_from=base, **adapter), batches)
    real = real_peak(kind(init_from=base, **adapter), batches, "32-true")
    assert forecast.peak_bytes == pytest.approx(real.peak_bytes, rel=0.02)
    assert forecast.memory["parameters"] == real.memory["parameters"]
    assert forecast.num_trained == real.num_trained
    if name == "dpo":  # a second, frozen model
        assert forecast.memory["parameters"] == 2 * 4 * forecast.num_parameters


def test_flops_are_those_of_the_formula():
    config = GPTConfig.from_preset("tiny", vocab_size=V, block_size=T, **SHAPE)
    flops = simulate_step(module(), [batch()]).work.flops
    weights = config.num_parameters(embeddings=False) - sum(
        p.numel() for name, p in _parameters(config).items() if p.dim() == 1
    )
    assert flops["linear"] == 6 * weights * B * T
    # q kᵀ and the weighted sum: 2 products forward, 5 backward (flash attention computes q kᵀ again), causal: half
    assert flops["attention"] == SHAPE["n_layer"] * 7 * 2 * B * T * T * SHAPE["n_embd"] / 2


def _parameters(config):
    with torch.device("meta"):
        return dict(GPT(config).named_parameters())


def test_a_thousand_processes_hold_a_thousandth_each():
    whole = simulate_step(module({"n_head": 8, "n_embd": 64}), [batch()])
    sharded = simulate_step(module({"n_head": 8, "n_embd": 64}), [batch()], layout=Layout(data=16))
    assert sharded.memory["parameters"] == pytest.approx(whole.memory["parameters"] / 16, rel=0.02)
    calls = {c.name: c for c in sharded.work.collectives if c.num_ranks == 16}
    # every parameter is gathered for the forward pass, those of the blocks once more for the backward pass
    gathered, blocks = whole.num_parameters * 4, (whole.num_parameters - V * 64 - 64) * 4
    assert calls["all_gather"].num_bytes == pytest.approx(gathered + blocks, rel=0.02)
    assert calls["reduce_scatter"].num_bytes == pytest.approx(gathered, rel=0.02)


def test_the_first_simulation_takes_no_more_than_the_next():
    """DTensor infers the shapes of operations that it has not seen on tensors of the global size, which is no memory."""
    sizes = []
    for _ in range(2):
        step = simulate_step(module({"n_embd": 40, "intermediate_size": 92}), [batch()], layout=Layout(data=64))
        sizes.append(sum(size for _, size in step.events))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_the_strategy_decides_what_is_sent():
    def sent(**options):
        layout = Layout(data=16)
        step = simulate_step(module(), [batch(), batch()], "bf16-mixed", layout, accelerator="cuda", **options)
        return {c.name: (c.num_calls, c.num_bytes) for c in step.work.collectives if c.num_bytes > 1000}, step

    usual, step = sent()
    # Two blocks are gathered twice a micro-batch, the rest once; all three are reduced once a step.
    assert usual["all_gather"][0] == 2 * (2 * 2 + 1)
    assert usual["reduce_scatter"][0] == 3
    synchronized, sharded = sent(sync_micro_batches=True)
    assert synchronized["reduce_scatter"] == (6, 2 * usual["reduce_scatter"][1])
    assert sharded.peak_bytes < step.peak_bytes
    assert sent(all_gather_dtype="bfloat16")[0]["all_gather"] == (10, usual["all_gather"][1] / 2)
    assert sent(reshard_after_forward=False)[0]["all_gather"][0] == 3


def test_divided_rows_take_their_share():
    whole = simulate_step(module(), [batch()], layout=Layout(data=4), accelerator="cuda")
    part = simulate_step(module(), [batch()], layout=Layout(context=4), accelerator="cuda")
    assert part.work.flops["linear"] == whole.work.flops["linear"] / 4
    assert part.work.flops["attention"] == whole.work.flops["attention"] / 4, "of causal attention, each has the same"
    assert part.memory["activations"] < whole.memory["activations"] / 2


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zero_bubble"])
def test_the_stages_of_a_pipeline_are_the_model_and_send_hidden_states(schedule):
    untied = {"n_layer": 4, "tie_embeddings": False}
    whole = simulate_step(module(untied), [batch()] * 4)

    def stage(place, count=4):
        layout = Layout(pipeline=2)
        return simulate_step(module(untied), [batch()] * count, layout=layout, schedule=schedule, stage=place)

    stages = [stage(place) for place in (0, 1)]
    assert sum(step.num_parameters for step in stages) == whole.num_parameters
    assert sum(step.work.flops["linear"] for step in stages) == whole.work.flops["linear"]
    boundaries = 3 if schedule == "interleaved" else 1  # between the stages: forward, and back
    for step in stages:
        (sent,) = [c for c in step.work.collectives if c.name == "send"]
        assert sent.num_calls == 4 * boundaries
        assert sent.num_bytes == sent.sent_bytes == 4 * boundaries * B * T * SHAPE["n_embd"] * 4
    if schedule == "1f1b":  # the first process keeps two micro-batches, however many there are
        assert stage(0, 8).memory["activations"] == pytest.approx(stages[0].memory["activations"], rel=0.02)


def test_a_layer_waits_for_its_tensor_and_context_groups_alone():
    def collectives(**axes):
        step = simulate_step(module({"n_head": 8, "n_embd": 64}), [batch()], layout=Layout(**axes))
        return {(c.name, c.waits) for c in step.work.collectives if c.num_bytes > 1000}

    assert collectives(data=2) == {("all_gather", False), ("reduce_scatter", False)}
    assert collectives(context=2) == {(name, waits) for name in ("all_gather", "reduce_scatter") for waits in (0, 1)}
    assert {waits for _, waits in collectives(tensor=2)} == {True}


def test_ddp_sends_each_gradient_once_and_keeps_a_copy():
    step = simulate_step(module(), [batch()], layout=Layout(replicate=8))
    (reduced,) = [c for c in step.work.collectives if c.num_bytes > 1000]
    assert (reduced.name, reduced.num_ranks) == ("all_reduce", 8)
    assert step.memory["collectives"] == step.memory["parameters"]
    assert reduced.num_bytes - 8 == step.memory["parameters"]  # and the number of supervised tokens


@pytest.mark.parametrize(("name", "sent"), [("all_reduce", 150.0), ("all_gather", 75.0), ("reduce_scatter", 75.0)])
def test_a_ring_sends_all_but_its_own_part(name, sent):
    assert Collective(name, 4, 1, 100).sent_bytes == sent


def test_the_caching_allocator_by_hand():
    events = [(1, 3 * MIB), (2, 100), (3, 11 * MIB), (1, 0), (4, 2 * MIB), (3, 0), (5, 12 * MIB)]
    # a segment of 20 MiB; one of 2 MiB; one of 12 MiB, of which 11 are too few for the last
    assert reserved_cuda(events) == (20 + 2) * MIB  # 3 and 11 share the first segment, 12 fits where both were
    assert reserved_cuda([*events[:5], (6, 30 * MIB)]) == (20 + 2 + 30) * MIB
    expected, upper = process_memory(events, 14 * MIB, "cuda")
    assert expected == 14 * MIB
    assert upper > 22 * MIB


@pytest.mark.parametrize("precision", ["transformer-engine", "8-true"])
def test_an_unknown_precision_is_named(precision):
    with pytest.raises(UserError, match=precision):
        simulate_step(module(), [batch()], precision)


def test_a_step_that_looks_at_values_is_refused():
    class Looks(PretrainModule):
        def loss(self, batch):
            if batch["labels"].sum().item() > 0:
                raise AssertionError
            return super().loss(batch)

    looks = Looks(preset="tiny", vocab_size=V, block_size=T, overrides=SHAPE)
    with pytest.raises(UserError, match="Looks"):
        simulate_step(looks, [batch()])
