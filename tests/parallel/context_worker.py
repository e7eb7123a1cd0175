"""What one process of `test_context.py` does: the same forward and backward on its part of the rows as on whole ones."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from lit_gpt.models import GPT, GPTConfig
from lit_gpt.objectives import RouterTraining
from lit_gpt.parallel.context import cut_rows

PACKAGE = Path(__file__).parent.parent / "downstream" / "package"


def start(rank: int, size: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    sys.path.insert(0, str(PACKAGE))
    import acme_lm.linear  # noqa: F401  (registers its layer)


def stop() -> None:
    dist.barrier()  # gloo aborts a process whose peer leaves while it still talks
    dist.destroy_process_group()


def step(model: GPT, batch: dict) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return hidden states, the summed loss of one process and its gradients, with every loss that a model may have."""
    moe = model.config.moe
    routers = None if moe is None else RouterTraining(moe)
    options = {"sequence": batch["sequence"]} if "sequence" in batch else {}
    if routers is not None:
        options["routing"] = routers.new_record(batch)
    hidden = []

    def head_fn(h, weight, bias):
        hidden.append(h)
        return F.cross_entropy(F.linear(h, weight, bias).mT, batch["labels"], reduction="sum")

    model.zero_grad()
    loss = model(batch["input_ids"], batch["position_ids"], batch.get("document_ids"), head_fn=head_fn, **options)
    if routers is not None:
        loss = loss + routers.take_loss()
    loss.backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return hidden[0].detach(), loss.detach(), gradients


def equal_one_process(rank: int, size: int, store: str, cases: dict[str, tuple[GPTConfig, dict]]) -> None:
    """Check forward, loss and gradients of each case against the whole rows, computed here as well."""
    start(rank, size, store)
    for name, (config, batch) in cases.items():
        model = GPT(config)
        model.init_weights(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        for recompute in (False, True):
            model.gradient_checkpointing = recompute
            hidden, loss, gradients = step(model, batch)
            cut = cut_rows(batch, rank, size)
            part_hidden, part_loss, part_gradients = step(model, cut)
            real = cut["document_ids"] >= 0 if "document_ids" in cut else torch.ones_like(cut["input_ids"], dtype=bool)
            padded = F.pad(hidden, (0, 0, 0, cut["sequence"].num_tokens - hidden.shape[1]))
            expected = cut["sequence"].own(padded)
            torch.testing.assert_close(part_hidden[real], expected[real], rtol=1e-5, atol=1e-5, msg=name)
            dist.all_reduce(part_loss)
            torch.testing.assert_close(part_loss, loss, rtol=1e-6, atol=0, msg=name)
            scale = max(gradient.abs().max() for gradient in gradients.values())
            for parameter, gradient in part_gradients.items():
                dist.all_reduce(gradient)
                difference = (gradient - gradients[parameter]).abs().max() / scale
                assert difference < 1e-6, (name, parameter, float(difference))
    stop()
