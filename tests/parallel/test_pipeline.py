"""Pipelines follow one process: gradients of the schedules, whole runs, and checkpoints of any layout in any other."""

import itertools
import json
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from context_runs import prepare
from lightning.pytorch.trainer.states import TrainerFn
from pipeline_runs import fit_all
from processes import spawn
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.checkpoints.step import by_index, join_parameters, select_parameters
from lit_gpt.errors import UserError
from lit_gpt.generation import generate
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.counts import flops_per_token, head_flops, layer_flops, multi_token_flops
from lit_gpt.models.moe import Routing
from lit_gpt.modules import DPOModule, PretrainModule
from lit_gpt.objectives import linear_cross_entropy, routing_loss
from lit_gpt.optim import parameter_groups
from lit_gpt.parallel import Layout, Pipeline, add_loss, parallelize
from lit_gpt.parallel.pipeline import EMBEDDING_FLOPS, check_micro_batches, check_pipeline, split_layers
from lit_gpt.plugins import ParallelStrategy

SMALL = {"n_layer": 4, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 64}
UNTIED = {"tie_embeddings": False}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "balance_loss_weight": 0.01, "z_loss_weight": 1e-3}
BIASED = MOE | {"selection_bias": True, "bias_update_rate": 1e-3, "layers": (False, False, True, True)}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}


def config_of(changes):
    return GPTConfig(**SMALL).overridden(changes)


# ---- division into stages ---------------------------------------------------------------------------------------


def costs_of(config):
    costs = [layer_flops(config, layer, config.block_size, causal=True) for layer in range(config.n_layer)]
    costs[0] += EMBEDDING_FLOPS * config.n_embd
    costs[-1] += head_flops(config) + multi_token_flops(config, config.block_size, causal=True)
    return costs


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "changes",
    [{}, {"vocab_size": 4096}, {"moe": MOE | {"layers": (False,) * 3 + (True,) * 4}}, {"multi_token": 1}],
    ids=str,
)
def test_no_other_split_is_cheaper(changes, num_stages):
    config = config_of({"n_layer": 7} | changes)
    costs = costs_of(config)

    def most(starts):
        return max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *starts, 7)))

    found = split_layers(config, num_stages)
    assert [layer for layers in found for layer in layers] == list(range(7))
    assert most([layers.start for layers in found[1:]]) == min(
        map(most, itertools.combinations(range(1, 7), num_stages - 1))
    )


def test_the_head_makes_the_last_stage_shorter():
    wide = SMALL | {"n_layer": 8, "n_embd": 1024}  # a block has 12 C² parameters
    assert split_layers(GPTConfig(**wide), 2) == [range(0, 4), range(4, 8)]
    assert split_layers(GPTConfig(**wide | {"vocab_size": 4 * 12 * 1024}), 2) == [range(0, 6), range(6, 8)]


@pytest.mark.parametrize("changes", [{}, UNTIED | {"multi_token": 2}, {"moe": MOE}], ids=str)
def test_costs_add_up_to_the_flops_of_the_model(changes):
    config = config_of(changes)
    blocks = sum(layer_flops(config, layer, 16) for layer in range(config.n_layer))
    assert blocks + head_flops(config) + multi_token_flops(config, 16) == flops_per_token(config, 16)


def stage(config, rank, size, **options):
    with torch.device("meta"):
        model = GPT(config)
    pipeline = Pipeline(model, SimpleNamespace(rank=lambda: rank, size=lambda: size), **options)
    pipeline.build_stages()
    return pipeline


@pytest.mark.parametrize(
    ("changes", "twice"),
    [
        ({}, {"wte.weight"}),
        (UNTIED, set()),
        (UNTIED | {"multi_token": 1, "positions": "learned"}, {"wte.weight", "wpe.weight"}),
        ({"multi_token": 1, "positions": "rope"}, {"wte.weight"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"schedule": "interleaved"}], ids=str)
def test_the_parts_have_the_names_of_the_whole(changes, twice, options):
    config = config_of(changes)
    parts = [stage(config, rank, 2, **options) for rank in (0, 1)]
    names = [set(part.model.state_dict()) for part in parts]
    assert names[0] | names[1] == set(GPT(config).state_dict())
    assert names[0] & names[1] == twice
    for part, own in zip(parts, names, strict=True):
        assert {name for name, p in part.model.named_parameters() for copy in part.copies() if p is copy} == twice
        held = {f"part.{name}" for name in own}
        assert {name for s in part.stages for name in s.state_dict()} == held
    assert "pipeline rank 1" in parts[0].describe()


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "schedule", "per_rank", "words"),
    [
        (5, "1f1b", None, ["pipeline 5", "n_layer 4", "lower pipeline"]),
        (4, "interleaved", None, ["= 8 stages", "n_layer 4", "stages_per_rank"]),
        (2, "zero_bubble", 3, ["= 6 stages", "n_layer 4"]),
        (2, "1f1b", 2, ["stages_per_rank", "2", "interleaved"]),
        (2, "interleaved", 1, ["stages_per_rank", "1", "1f1b"]),
        (2, "gpipe", None, ["schedule", "gpipe", "1f1b"]),
        (2, "1f1b", 0, ["stages_per_rank", "0", "at least 1"]),
    ],
)
def test_models_that_do_not_divide_are_one_line(size, schedule, per_rank, words):
    with pytest.raises(UserError) as error:
        check_pipeline(GPTConfig(**SMALL), size, schedule, per_rank)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("count", "schedule"), [(3, "1f1b"), (6, "interleaved"), (6, "zero_bubble"), (2, "zero_bubble")]
)
def test_too_few_micro_batches_are_one_line(count, schedule):
    with pytest.raises(UserError, match=rf"{count} micro-batch.*{schedule}.*micro_batch_size"):
        check_micro_batches(count, 4, schedule)
    check_micro_batches(8, 4, schedule)


def trainer_of(precision="32-true", fn=TrainerFn.FITTING):
    return SimpleNamespace(precision=precision, state=SimpleNamespace(fn=fn))


def module_of(**changes):
    fields = {"loss_sums_tokens": True, "builder": None, "compile_model": False} | changes
    return SimpleNamespace(**{"trainer": trainer_of()} | fields)


@pytest.mark.parametrize(
    ("options", "module", "words"),
    [
        ({}, {"loss_sums_tokens": False}, ["pipeline", "loss_sums_tokens"]),
        ({}, {"builder": {"class": "their.Module"}}, ["pipeline: 1"]),
        ({"schedule": "zero_bubble"}, {"compile_model": True}, ["zero_bubble", "compile"]),
        ({"save_distributed_checkpoint": False}, {}, ["save_distributed_checkpoint", "export"]),
        ({"sync_micro_batches": True}, {}, ["sync_micro_batches"]),
        ({"tensor": 2}, {}, ["tensor 2", "pipeline 2", "data"]),
        ({}, {"trainer": trainer_of("16-mixed")}, ["16-mixed", "bf16-mixed"]),
        ({}, {"trainer": trainer_of(fn=TrainerFn.PREDICTING)}, ["predict", "pipeline: 1"]),
    ],
)
def test_runs_that_a_pipeline_does_not_support_are_one_line(options, module, words):
    strategy = ParallelStrategy(pipeline=2, **options)
    strategy.layout = Layout(pipeline=2, tensor=options.get("tensor", 1))
    with pytest.raises(UserError) as error:
        strategy._check_run_of_pipeline(module_of(**module))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
    ParallelStrategy(pipeline=2)._check_run_of_pipeline(module_of())


def test_only_losses_that_run_the_model_once_are_accepted():
    class Own(PretrainModule):
        def loss(self, batch):
            raise NotImplementedError

    assert PretrainModule.loss_sums_tokens
    assert not Own.loss_sums_tokens
    assert not DPOModule.loss_sums_tokens


# ---- checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, UNTIED, UNTIED | {"multi_token": 1, "positions": "learned"}], ids=str)
def test_optimizers_of_the_stages_join_to_that_of_one_process(changes):
    config = config_of(changes)
    whole = GPT(config)
    names = {p: name for name, p in whole.named_parameters()}
    expected = [
        {**group, "params": [names[p] for p in group["params"]], "betas": (0.9, 0.95)}
        for group in parameter_groups(whole)
    ]
    state = {name: {"step": i} for i, name in enumerate(names.values())}
    order = {name: i for i, name in enumerate(whole.state_dict())}
    parts = [set(stage(config, rank, 4).model.state_dict()) for rank in range(4)]
    stages = []
    for own in parts:
        groups = [{**group, "params": [name for name in group["params"] if name in own]} for group in expected]
        stages.append(
            {
                "param_groups": [group for group in groups if group["params"]],
                "state": {name: state[name] for name in state if name in own},
            }
        )
    joined = join_parameters(stages, order)
    assert joined == {"param_groups": expected, "state": state}

    saved = [name for group in expected for name in group["params"]]
    for own in stages:
        wanted = [name for group in own["param_groups"] for name in group["params"]]
        assert select_parameters(by_index(joined), saved, wanted) == by_index(own)
    with pytest.raises(UserError, match="another model"):
        select_parameters(by_index(joined), saved, ["blocks.9.ln1.weight"])


# ---- schedules against one process ------------------------------------------------------------------------------


def micro_batches(count):
    """Micro-batches of different numbers and lengths of rows, packed with two documents each."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        ids = torch.randint(64, (1 + i % 2, 17 - i % 3), generator=generator)
        documents = (torch.arange(ids.shape[1] - 1) >= 7).long().expand(len(ids), -1)
        found.append({"input_ids": ids[:, :-1], "labels": ids[:, 1:], "document_ids": documents})
    return found


def run_part(part, batch, hidden, balance=True):
    """Run a stage, or a whole model, as `GPTModule` does."""
    routing = None if part.config.moe is None or not balance else Routing(batch["document_ids"])
    head_fn = partial(linear_cross_entropy, labels=batch["labels"])
    out = part(batch["input_ids"], document_ids=batch["document_ids"], hidden=hidden, routing=routing, head_fn=head_fn)
    extra = 0.0
    if routing is not None and routing.layers:
        extra = routing_loss(routing, part.config.moe, torch.ones(len(batch["labels"])))
    if part.lm_head is None:
        return add_loss(out, extra / 100) if routing is not None and routing.layers else out
    return (out.loss + extra) / 100


class CountCollectives(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def check_collectives(pipeline, counts, num_micro_batches, data):
    """A step sends each micro-batch over each border once and its gradient back; FSDP2 reduces each group once."""
    borders = sum((s.index > 0) + (not pipeline.is_last(s)) for s in pipeline.stages)
    expected = num_micro_batches * borders + len(pipeline.copies())
    assert (counts["send"], counts["recv_"]) == (expected, expected)
    groups = len(pipeline.model.blocks) + len({0, pipeline.num_stages - 1} & {s.index for s in pipeline.stages})
    reduced = sum(count for name, count in counts.items() if "reduce_scatter" in name)
    assert reduced == (groups if data > 1 else 0)


def check_gradients(mesh, config, options, data):
    """Three steps of a pipeline and of one process: equal losses, gradients, norms and copies."""
    alone = GPT(config)
    alone.init_weights(3)
    with torch.device("meta"):
        model = GPT(config)
    pipeline = Pipeline(model, mesh.get_group("pipeline"), **options)
    parallelize(model, mesh, pipeline=pipeline)
    model.to_empty(device="cpu")
    model.init_weights(3)
    weights = dict(alone.named_parameters())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (alone, model)]
    for _ in range(3):
        batches = micro_batches(4 * data)
        own = batches[mesh["data"].get_local_rank() :: data]
        for optimizer in optimizers:
            optimizer.zero_grad()
        losses = [run_part(alone, batch, None) for batch in batches]
        torch.stack(losses).sum().backward()
        with CountCollectives() as collectives:
            loss = pipeline.step(own, lambda *arguments: _scaled(run_part(*arguments), data))
        assert (loss is not None) == pipeline.has_last_stage
        if loss is not None and data == 1 and config.moe is None:  # balance losses stay on their stages
            torch.testing.assert_close(loss, torch.stack(losses).sum(), rtol=1e-6, atol=0)
        norm = nn.utils.get_total_norm([p.grad for p in alone.parameters()])
        torch.testing.assert_close(pipeline.gradient_norm(list(model.parameters())), norm, rtol=1e-5, atol=0)
        for name, parameter in model.named_parameters():
            grad = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
            torch.testing.assert_close(grad, weights[name].grad, rtol=1e-4, atol=1e-7, msg=name)
        for optimizer in optimizers:
            optimizer.step()
    check_collectives(pipeline, collectives.counts, len(own), data)
    forward = partial(run_part, balance=False)  # the balance losses of other stages stay there
    evaluated = [pipeline.evaluate(batch, forward) for batch in batches]
    if pipeline.has_last_stage:
        expected = [forward(alone, batch, None) for batch in batches]
        torch.testing.assert_close(torch.stack(evaluated), torch.stack(expected), rtol=1e-5, atol=0)
    else:
        assert evaluated == [None] * len(batches)


def _scaled(result, data):
    """FSDP2 averages gradients over ranks, so each rank's loss counts `data` times, as in `training_step`."""
    return result * data if result.dim() == 0 else result


@pytest.mark.parametrize(("options", "changes"), [({"schedule": "zero_bubble"}, {})], ids=str)
def test_gradients_of_two_stages_are_those_of_one_process(options, changes):
    spawn(check_gradients, Layout(pipeline=2), config_of(changes), options, 1)


def check_all(mesh, cases, data):
    for changes, options in cases:
        check_gradients(mesh, config_of(changes), options, data)


EIGHT = {"n_layer": 8}
CASES = [
    (UNTIED, {}),
    (EIGHT, {"schedule": "interleaved"}),
    (EIGHT | UNTIED, {"schedule": "zero_bubble", "stages_per_rank": 2}),
    ({"moe": MOE | {"layers": (False, False, True, True)}}, {}),
    (UNTIED | {"moe": MOE}, {"schedule": "zero_bubble"}),
    (UNTIED | {"mla": MLA, "positions": "rope"}, {"schedule": "zero_bubble"}),
    ({"layer_types": ("sliding", "attention") * 2, "sliding_window": 5}, {}),
]
DENSE = [case for case in CASES if "moe" not in case[0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "cases"),
    [(Layout(pipeline=2), CASES), (Layout(pipeline=4), CASES), (Layout(pipeline=2, data=2), DENSE)],
    ids=["2", "4", "2 x 2"],
)
def test_gradients_of_every_schedule_are_those_of_one_process(layout, cases):
    spawn(check_all, layout, cases, layout.data)


# ---- whole runs through the Trainer -----------------------------------------------------------------------------

BOUNDS = {"exact": 0.0, "untied": 2e-6, "tied": 1e-5}
"""How far weights and metrics (relative) may be from those of one process after 20 steps in float32.

exact: without clipping. untied: the norm that clipping divides by is summed over stages in another order. tied: the
gradients of embedding and head are added once an optimizer step and not after each micro-batch."""

TEN = {"max_steps": 10}
RUNS = {
    "exact": {"overrides": UNTIED, "optimizer": "sgd", "lr": 0.1, "clip": None, "bound": "exact"},
    "interleaved": {"strategy": {"schedule": "interleaved"}, "bound": "tied"},
    "muon": {"optimizer": "muon", "strategy": {"schedule": "zero_bubble", "stages_per_rank": 2}, "bound": "tied"},
    "moe": {"overrides": UNTIED | {"moe": BIASED}, "strategy": {"schedule": "zero_bubble"}, "bound": "untied"},
    "mla": {"overrides": UNTIED | {"mla": MLA, "positions": "rope", "qk_norm": None}, "bound": "untied"} | TEN,
    "mtp": {"overrides": {"multi_token": 1, "positions": "learned"}, "bound": "tied"} | TEN,
    "sft": {"rows": True, "bound": "tied"} | TEN,
    "poison": {"overrides": UNTIED, "poison": 1, "bound": "untied"} | TEN,
    "recompute": {"overrides": UNTIED, "recompute": True, "strategy": {"schedule": "zero_bubble"}, "bound": "untied"}
    | TEN,
    "bf16": {"overrides": UNTIED, "precision": "bf16-mixed", "strategy": {"schedule": "zero_bubble"}, "bound": "untied"}
    | TEN,
}
CHECKPOINT = "{}/checkpoints/step-00000010.ckpt"
ONE = {"micro_batch_size": 1}
RUNS_OF_FOUR = {
    "fsdp": {"data": ONE, "bound": "tied"},
    "four": {"strategy": {"pipeline": 4, "data": 1, "schedule": "zero_bubble"}, "data": ONE, "bound": "tied"} | TEN,
    "fsdp-zero": {
        "overrides": UNTIED | {"moe": BIASED}, "strategy": {"schedule": "zero_bubble"}, "data": ONE, "bound": "untied"
    } | TEN,
    "hsdp": {"strategy": {"replicate": 2, "data": 1, "schedule": "interleaved"}, "data": ONE, "bound": "tied"} | TEN,
    "fsdp-sft": {"rows": True, "data": ONE, "bound": "tied"} | TEN,
}  # fmt: skip


def named(runs):
    return [{"name": name, **run} for name, run in runs.items()]


def read(folder, name, world_size):
    return [json.loads((folder / f"{name}-pipeline-{rank}.json").read_text()) for rank in range(world_size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs of one process."""
    folder = tmp_path_factory.mktemp("runs")
    prepare(folder)
    spawn(fit_all, Layout(), named(RUNS | RUNS_OF_FOUR), folder, None)
    return folder


@pytest.fixture(scope="module")
def two(folder):
    """The same runs on two stages."""
    spawn(fit_all, Layout(pipeline=2), named(RUNS), folder, {"pipeline": 2})
    return folder


@pytest.fixture(scope="module")
def four(two):
    """Runs of four processes; some resume what one, two or four processes began."""
    begun = {
        "from-one": {"ckpt_path": CHECKPOINT.format("fsdp"), "strategy": {"pipeline": 4, "data": 1}},
        "from-two": {"ckpt_path": CHECKPOINT.format("fsdp-pipeline"), "strategy": {"pipeline": 4, "data": 1}},
        "to-fsdp": {"ckpt_path": CHECKPOINT.format("fsdp-pipeline"), "strategy": {"pipeline": 1, "data": 4}},
    }
    begun = {name: run | {"ckpt_path": str(two / run["ckpt_path"]), "data": ONE} for name, run in begun.items()}
    runs = named(RUNS_OF_FOUR | begun)
    spawn(fit_all, Layout(pipeline=2, data=2), runs, two, {"pipeline": 2, "data": 2})
    spawn(fit_all, Layout(), [{"name": "to-one", **begun["to-fsdp"], "strategy": {}}], two, None)
    return two


def check_run(one, ranks, bound, from_step=0):
    """Every metric, weight and average is within the bound, and the stages have the same log and together all weights."""
    for found in ranks:
        assert "error" not in found, found
        assert found["skipped"] == one["skipped"]
        assert found["tokens_seen"] == one["tokens_seen"]
    log = ranks[0]["log"]
    assert log.keys() == one["log"].keys()
    for name, values in one["log"].items():
        kept = {step: value for step, value in values.items() if step == "null" or int(step) > from_step}
        assert log[name].keys() == kept.keys(), name
        tolerance = max(bound, 1e-6)  # means are printed in float32
        assert list(log[name].values()) == pytest.approx(list(kept.values()), rel=tolerance, abs=1e-9), name
    for kind in ("weights", "averages"):
        assert set().union(*(found[kind] for found in ranks)) == one[kind].keys()
        for found in ranks:
            for name, values in found[kind].items():
                assert values == pytest.approx(one[kind][name], rel=0, abs=bound), name
    first, last = ranks[0]["weights"], ranks[-1]["weights"]
    for name in first.keys() & last.keys():
        assert first[name] == last[name], f"the two copies of {name} differ"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_stages_follow_one_process(two, name):
    check_run(json.loads((two / f"{name}.json").read_text()), read(two, name, 2), BOUNDS[RUNS[name]["bound"]])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS_OF_FOUR)
def test_four_processes_follow_one(four, name):
    run = RUNS_OF_FOUR[name]
    one = json.loads((four / f"{name}.json").read_text())
    check_run(one, read(four, name, 4), BOUNDS[run["bound"]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["from-one", "from-two", "to-fsdp"])
def test_a_run_goes_on_under_another_layout(four, name):
    check_run(json.loads((four / "fsdp.json").read_text()), read(four, name, 4), BOUNDS["tied"], from_step=10)


@pytest.mark.slow
def test_a_pipelines_run_goes_on_in_one_process(four):
    one, found = (json.loads((four / f"{name}.json").read_text()) for name in ("fsdp", "to-one"))
    check_run(one, [found], BOUNDS["tied"], from_step=10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "four", "mtp"])
def test_a_pipelines_checkpoint_generates(four, name):
    models = []
    for run in (name, f"{name}-pipeline"):
        source = resolve_model(four / run)
        model = GPT(source.config)
        model.load_state_dict(source.load_state_dict())
        models.append(model.eval())
    for (weight, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=BOUNDS["tied"], msg=weight)
    prompt = torch.tensor([[1, 2, 3]])
    assert torch.equal(*(generate(model, prompt, 8, temperature=0.0) for model in models))


@pytest.mark.slow
def test_too_few_micro_batches_end_a_run_before_its_first_step(folder):
    run = {"name": "few", "data": {"micro_batch_size": 8}}
    spawn(fit_all, Layout(pipeline=2), [run], folder, {"pipeline": 2})
    for found in read(folder, "few", 2):
        assert "1 micro-batch" in found["error"]
        assert "micro_batch_size" in found["error"]
