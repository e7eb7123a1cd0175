"""Context parallelism: rows divided over processes give what whole rows give."""

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.fabric.plugins.environments import LightningEnvironment
from processes import Collectives, spawn

from lit_gpt.adapters import AdapterConfig
from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig, MLAConfig, MoEConfig, RopeScaling
from lit_gpt.models.attention import Scoring, SelfAttention, attend
from lit_gpt.models.masks import build_masks, dense_mask, flex_block_mask
from lit_gpt.modules import ClassificationModule, PretrainModule
from lit_gpt.objectives import RouterTraining
from lit_gpt.parallel import Layout, check_model
from lit_gpt.parallel.context import chunks_of, cut_batch, cut_rows
from lit_gpt.plugins import ParallelStrategy

sys.path.append(str(Path(__file__).parents[1] / "downstream" / "package"))

SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 32, "vocab_size": 61}
MODERN = {"norm": "rmsnorm", "bias": False, "positions": "rope", "mlp": "swiglu", "intermediate_size": 48}
MLA = MODERN | {"mla": MLAConfig(12, 20, 8, 4, 8)}
EXPERTS = {"moe": MoEConfig(6, 2, intermediate_size=16, balance_loss_weight=0.1, z_loss_weight=0.01)}
CASES = {
    "textbook": {},
    "grouped queries, windows": MODERN | {"n_kv_head": 2, "sliding_window": 5, "layer_windows": (True, False)},
    "chunked windows, sinks": MODERN
    | {"attention_sinks": True, "sliding_window": 6, "chunked_window": True, "layer_windows": (True, False)},
    "alibi, soft-cap": {"positions": "alibi", "attention_softcap": 2.0, "sliding_window": 7},
    "frequencies by length": MODERN | {"rope_scaling": RopeScaling("dynamic", 4.0, 10), "rope_theta": 100.0},
    "tables by length, local base": MODERN
    | {
        "rope_scaling": RopeScaling("longrope", 4.0, 10, short_factors=(1.0,) * 4, long_factors=(1.5, 2.0, 3.0, 4.0)),
        "sliding_window": 5,
        "layer_windows": (True, False),
        "rope_local_theta": 100.0,
    },
    "latent attention, experts": MLA | EXPERTS,
    "experts with selection bias": MODERN | {"moe": MoEConfig(6, 2, 16, scores="sigmoid", selection_bias=True)},
    "sinusoids": {"positions": "sinusoidal", "norm_placement": "post"},
    "recurrent layers of another package": MODERN
    | {"layer_types": ("gated_linear", "attention"), "mixer_options": {"gated_linear": {"num_heads": 4}}},
}
LENGTHS = [(9, 1, 16), (3, 19)]
"""Of the documents of two rows of 26 tokens, which neither 4 nor 8 divides; the second row ends in padding."""


def packed_batch(document_ids: bool = True) -> dict:
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(61, (2, 2, 26), generator=generator)
    labels[torch.rand(2, 26, generator=generator) < 0.3] = IGNORE_INDEX
    positions, documents = torch.zeros_like(ids), torch.full_like(ids, -1)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for number, length in enumerate(lengths):
            positions[row, start : start + length] = torch.arange(length)
            documents[row, start : start + length] = number
            start += length
    labels[documents == -1] = IGNORE_INDEX
    if not document_ids:
        return {"input_ids": ids, "labels": labels}
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "document_ids": documents}


# ---- the cut ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 4])
def test_chunks_cover_the_row_once_and_cost_each_process_the_same(size):
    chunks = [chunk for rank in range(size) for chunk in chunks_of(48, rank, size)]
    assert sorted(place for chunk in chunks for place in range(48)[chunk]) == list(range(48))
    causal = [
        sum(place + 1 for chunk in chunks_of(48, rank, size) for place in range(48)[chunk]) for rank in range(size)
    ]
    assert len(set(causal)) == 1


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("document_ids", [True, False])
def test_parts_of_a_batch_make_up_the_whole(size, document_ids):
    batch = packed_batch(document_ids)
    batch |= {"num_bytes": torch.tensor([7, 9]), "sample_ids": torch.tensor([3, 4]), "corpus": "a"}
    batch["weights"] = torch.rand(2, 26, 3)
    batch["target_index"] = (batch["labels"].flatten() != IGNORE_INDEX).nonzero().squeeze(1)
    parts = [cut_rows(batch, rank, size) for rank in range(size)]
    T = parts[0]["sequence"].num_tokens
    assert 26 <= T < 26 + 2 * size
    assert T % (2 * size) == 0
    found = {name: torch.full((2, T, *batch[name].shape[2:]), -7.0) for name in ("input_ids", "labels", "weights")}
    targets = []
    for part in parts:
        sequence = part["sequence"]
        assert sequence.num_read == 26
        assert part["input_ids"].shape == (2, T // size)
        for name, whole in found.items():
            whole[:, sequence.index] = part[name].float()
        targets += part["labels"].flatten()[part["target_index"]].tolist()
        assert torch.equal(part["document_ids"], sequence.own(sequence.document_ids))
        assert torch.equal(part["position_ids"], sequence.own(sequence.position_ids))
        assert part["corpus"] == "a"
        assert torch.equal(part["sample_ids"], batch["sample_ids"])
    for name, whole in found.items():
        assert torch.equal(whole[:, :26], batch[name].float())
    assert (found["labels"][:, 26:] == IGNORE_INDEX).all()
    assert (sequence.document_ids[:, 26:] == -1).all()
    assert sorted(targets) == sorted(batch["labels"][batch["labels"] != IGNORE_INDEX].tolist())
    assert [part["num_bytes"].sum().item() for part in parts] == [16] + [0] * (size - 1)


def test_a_row_that_needs_no_padding_gets_no_documents():
    part = cut_rows({"input_ids": torch.zeros(2, 16, dtype=torch.int64)}, 1, 2)
    assert part["sequence"].document_ids is None
    assert part["position_ids"].tolist() == [[4, 5, 6, 7, 8, 9, 10, 11]] * 2
    assert part["sequence"].to(torch.device("cpu")).chunks == (slice(4, 8), slice(8, 12))


def test_a_class_with_its_own_method_declares_what_it_promises():
    class Other(SelfAttention):
        def forward(self, x, context, state=None):
            return x

    class Renamed(SelfAttention):
        pass

    assert SelfAttention.divides_rows
    assert Renamed.divides_rows
    assert not Other.divides_rows


@pytest.mark.parametrize("batch", [torch.zeros(2, 8), {"input_ids": torch.zeros(8)}, {"prompts": []}])
def test_a_batch_without_token_rows_is_refused(batch):
    with pytest.raises(UserError, match=r"context is 2.*input_ids"):
        cut_rows(batch, 0, 2)


def test_whole_rows_longer_than_the_block_size_are_refused():
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=32, block_size=8))
    part = cut_rows({"input_ids": torch.zeros(1, 10, dtype=torch.int64)}, rank=0, size=2)
    with pytest.raises(UserError, match="10 tokens .* block_size 8"):
        model(part["input_ids"], part["position_ids"], part["document_ids"], sequence=part["sequence"])


def test_layers_that_need_whole_rows_are_refused(monkeypatch):
    import acme_lm.linear

    config = GPTConfig(**SMALL | CASES["recurrent layers of another package"])
    check_model(config, Layout(context=2))
    monkeypatch.setattr(acme_lm.linear.GatedLinear, "divides_rows", False)
    check_model(config, Layout(data=2))
    with pytest.raises(UserError, match=r"gated_linear.*context: 1"):
        check_model(config, Layout(context=2))
    part = cut_rows(packed_batch(), 0, 2)
    with pytest.raises(UserError, match="GatedLinear"):  # also a model that the strategy does not know, as a teacher
        GPT(config)(part["input_ids"], part["position_ids"], part["document_ids"], sequence=part["sequence"])


# ---- masks: this process's queries, the keys of the whole row ---------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("document_ids", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
def test_masks_are_rows_of_the_whole_mask_and_no_larger_than_their_reach(size, document_ids, chunked):
    config = GPTConfig(**SMALL, sliding_window=5, layer_windows=(True, False), chunked_window=chunked)
    batch = packed_batch(document_ids)
    areas = []
    for rank in range(size):
        sequence = cut_rows(batch, rank, size)["sequence"]
        T, device = sequence.num_tokens, torch.device("cpu")
        inputs = (sequence.document_ids if document_ids else None, T, device, 0.0, sequence.position_ids)
        whole, own = build_masks(config, *inputs), build_masks(config, *inputs, sequence)
        for kind in ("full", "sliding"):
            expected = getattr(whole, kind)
            if expected is None:
                expected = torch.ones(1, 1, T, T, dtype=torch.bool).tril()
            area = 0
            for chunk, part in zip(sequence.chunks, getattr(own, kind), strict=True):
                n = chunk.stop - chunk.start
                mask = torch.ones(1, 1, n, n, dtype=torch.bool).tril() if part.mask is None else part.mask
                assert torch.equal(mask, expected[:, :, chunk, part.keys])
                area += n * mask.shape[3]
                outside = expected[:, :, chunk].clone()
                outside[..., part.keys] = False
                assert not outside.any(), "a key that a query may attend to is left out"
            assert area <= T // size * T
            areas += [area] if kind == "full" else []
    assert len(set(areas)) == 1, "the same work for each process"
    assert areas[0] <= (T * T / 2 + T * T / (2 * size)) / size


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_with_the_queries_of_one_process():
    # Uncompiled FlexAttention is plain torch and runs on CPU: the rule is tested here.
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 28, 16, generator=generator) for heads in (4, 2, 2))
    places = torch.arange(28)
    for rank in range(2):
        sequence = cut_rows(packed_batch(), rank, 2)["sequence"]
        documents, index = sequence.document_ids, sequence.index
        for window in (None, 5):
            block_mask = flex_block_mask(documents, window, 28, torch.device("cpu"), None, index)
            y = attend(q[:, :, index], k, v, block_mask, queries=index)
            expected = attend(q, k, v, dense_mask(documents, window, places, places))[:, :, index]
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
        sinks, scoring = torch.randn(4, generator=generator), Scoring(0.4, softcap=1.5, alibi=True)
        config = GPTConfig(n_head=4, n_embd=64, positions="alibi")
        bias = build_masks(config, documents, 28, torch.device("cpu")).full
        block_mask = flex_block_mask(documents, None, 28, torch.device("cpu"), None, index)
        y = attend(q[:, :, index], k, v, block_mask, scoring, sinks, queries=index)
        torch.testing.assert_close(y, attend(q, k, v, bias, scoring, sinks)[:, :, index], rtol=1e-5, atol=1e-5)


# ---- one process ------------------------------------------------------------------------------------------------------


def run_step(model: GPT, batch: dict) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return hidden states, the summed loss and its gradients, of the rows or of the part in the batch."""
    routers = None if model.config.moe is None else RouterTraining(model.config.moe)
    options = {"sequence": batch.get("sequence"), "routing": None if routers is None else routers.new_record(batch)}
    hidden = []

    def head_fn(h, weight, bias):
        hidden.append(h.detach())
        return F.cross_entropy(F.linear(h, weight, bias).mT, batch["labels"], reduction="sum")

    model.zero_grad()
    loss = model(batch["input_ids"], batch.get("position_ids"), batch.get("document_ids"), head_fn=head_fn, **options)
    if routers is not None:
        loss = loss + routers.take_loss()
    loss.backward()
    return hidden[0], loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def noisy(config: GPTConfig) -> GPT:
    """A model whose biases, sinks and norms are not those of the start."""
    import acme_lm.linear  # noqa: F401  (registers its layer, also in a spawned process)

    model = GPT(config)
    model.init_weights(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def equal_one_process(mesh, cases: dict[str, dict]) -> None:
    for name, changes in cases.items():
        model = noisy(GPTConfig(**SMALL | changes))
        for document_ids in (True, False):
            batch = packed_batch(document_ids)
            hidden, loss, gradients = run_step(model, batch)
            largest = max(gradient.abs().max() for gradient in gradients.values())
            gradients = {key: gradient.clone() for key, gradient in gradients.items()}
            cut = cut_batch([batch], mesh["context"])[0]
            sequence = cut["sequence"]
            expected = sequence.own(F.pad(hidden, (0, 0, 0, sequence.num_tokens - 26)))
            real = cut["document_ids"] >= 0
            for recompute in (False, True):
                model.gradient_checkpointing = recompute
                part_hidden, part_loss, part_gradients = run_step(model, cut)
                torch.testing.assert_close(part_hidden[real], expected[real], rtol=1e-5, atol=1e-5, msg=name)
                dist.all_reduce(part_loss)
                torch.testing.assert_close(part_loss, loss, rtol=1e-6, atol=0, msg=name)
                for parameter, gradient in part_gradients.items():
                    dist.all_reduce(gradient)
                    difference = (gradient - gradients[parameter]).abs().max() / largest
                    assert difference <= 2e-6, (name, parameter, float(difference))
            model.gradient_checkpointing = False


def test_two_processes_equal_one():
    some = ("grouped queries, windows", "latent attention, experts")
    spawn(equal_one_process, Layout(context=2), {name: CASES[name] for name in some})


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_forward_loss_and_gradients_equal_one_process(size):
    spawn(equal_one_process, Layout(context=size), CASES)


def stay_isolated(mesh, cases: dict[str, dict]) -> None:
    batch = packed_batch()
    documents = batch["document_ids"]
    for changes in cases.values():
        model = noisy(GPTConfig(**SMALL | changes)).eval()
        before = hidden_of(model, batch, mesh)
        for row, lengths in enumerate(LENGTHS):
            for number in range(len(lengths)):
                inside = torch.zeros_like(documents, dtype=torch.bool)
                inside[row] = documents[row] == number
                changed = batch | {"input_ids": torch.where(inside, (batch["input_ids"] + 1) % 61, batch["input_ids"])}
                after = hidden_of(model, changed, mesh)
                elsewhere = ~inside & (documents >= 0)
                # How an expert's product rounds depends on the number of its rows, which includes other documents'.
                bound = 1e-6 if model.config.moe else 0
                torch.testing.assert_close(after[elsewhere], before[elsewhere], rtol=0, atol=bound)
                assert (before[inside] != after[inside]).any(-1).all()


@torch.no_grad()
def hidden_of(model: GPT, batch: dict, mesh) -> torch.Tensor:
    cut = cut_batch(batch, mesh["context"])
    sequence = cut["sequence"]
    inputs = (cut["input_ids"], cut["position_ids"], cut["document_ids"])
    (whole,) = sequence.gather(model(*inputs, head_fn=lambda hidden, *_: hidden, sequence=sequence))
    return whole[:, :26]


@pytest.mark.slow
def test_packed_documents_stay_isolated_to_the_bit_across_the_cut():
    spawn(stay_isolated, Layout(context=2), CASES)


# ---- collectives ------------------------------------------------------------------------------------------------------


def count_collectives(mesh) -> None:
    dense, mixture = (noisy(GPTConfig(**SMALL | changes)) for changes in (MODERN, CASES["latent attention, experts"]))
    batch = cut_batch(packed_batch(), mesh["context"])
    for model, recompute, gathers, sums in ((dense, False, 1, 0), (dense, True, 2, 0), (mixture, False, 1, 1)):
        model.gradient_checkpointing = recompute
        with Collectives() as collectives:
            run_step(model, batch)
        # A layer gathers keys and values at once, and again when it is recomputed; its backward reduces them at once.
        # The counts of all layers' experts are summed at once.
        expected = {"all_gather": gathers * 2, "reduce_scatter": 2, "all_reduce": sums}
        assert collectives.counts == Counter(expected)


@pytest.mark.slow
def test_collectives_are_two_per_layer():
    spawn(count_collectives, Layout(context=2))


# ---- bad input --------------------------------------------------------------------------------------------------------


class OwnLoss(PretrainModule):
    def loss(self, batch):
        return super().loss(batch)


class DeclaredLoss(OwnLoss):
    loss_sums_tokens = True

    def loss(self, batch):
        return super().loss(batch)


@pytest.mark.parametrize(
    ("module", "layers", "message"),
    [
        (ClassificationModule(classes=["a", "b"]), {}, r"context 2.*ClassificationModule.*context: 1"),
        (OwnLoss(), {}, r"context 2.*OwnLoss.*loss_sums_tokens"),
        (DeclaredLoss(), {}, None),
        (PretrainModule(), {"context": 3}, "context 3"),
        (PretrainModule(), {"context": 0}, "context is 0"),
        (SimpleNamespace(adapter=AdapterConfig(dora=True)), {"context": 1}, r"adapter.dora is True.*false.*ddp"),
        (SimpleNamespace(adapter=AdapterConfig(quantize="nf4")), {"context": 1}, r"adapter.quantize is nf4.*null.*ddp"),
        (SimpleNamespace(adapter=AdapterConfig()), {"context": 1}, None),
    ],
)
def test_what_cannot_be_divided_is_refused_before_any_process_group(module, layers, message, monkeypatch):
    strategy = ParallelStrategy(**{"context": 2} | layers)
    strategy.cluster_environment, strategy.parallel_devices = LightningEnvironment(), [torch.device("cpu")] * 2
    monkeypatch.setattr(strategy, "_lightning_module", module)
    started = []
    monkeypatch.setattr(strategy, "_setup_distributed", lambda: started.append(1))
    monkeypatch.setattr(Layout, "build_mesh", lambda *_: None)
    if message is None:
        strategy.setup_environment()
    else:
        with pytest.raises(UserError, match=message):
            strategy.setup_environment()
    assert bool(started) == (message is None)
