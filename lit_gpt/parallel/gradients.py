"""Gradients of a model whose parameters are split: when they are summed over devices, their norm, and clipping."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import _functional_collectives as funcol
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.optim import Optimizer


@contextmanager
def accumulated_locally(
    model: nn.Module, sync_micro_batches: bool = False, reshard_after_forward: bool = True
) -> Iterator[None]:
    """Within it, backward passes add to the gradient on this device alone; the next one outside sums over devices.

    FSDP2 then keeps whole gradients (in float32) from one micro-batch to the next, and whole parameters, too, if they
    are not resharded after the forward pass.

    Args:
        model: Model that FSDP2 has sharded, or not.
        sync_micro_batches: Whether gradients are summed over devices after each micro-batch nevertheless.
        reshard_after_forward: Whether parameters are freed after the forward pass.
    """
    from torch.distributed.fsdp import FSDPModule

    sharded = [] if sync_micro_batches else [m for m in model.modules() if isinstance(m, FSDPModule)]

    def set_sync(is_last: bool) -> None:
        for module in sharded:
            module.set_requires_gradient_sync(is_last, recurse=False)
            if not reshard_after_forward:
                module.set_reshard_after_backward(is_last, recurse=False)

    set_sync(False)
    try:
        yield
    finally:
        set_sync(True)


@torch.no_grad()
def sum_partial_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of which each process holds a summand, in one all-reduce per process group and dtype.

    FSDP2 has already done so for the parameters that it shards; without it, this runs once per optimizer step, after
    the last backward pass.

    Args:
        parameters: Parameters; those whose gradient is complete are skipped.
    """
    buckets: dict[tuple[Any, torch.dtype], list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        grad = parameter.grad
        if isinstance(grad, DTensor):
            for dim, placement in enumerate(grad.placements):
                if isinstance(placement, Partial):
                    buckets[grad.device_mesh.get_group(dim), grad.dtype].append(parameter)
    for (group, _), bucket in buckets.items():
        parts = [parameter.grad.to_local() for parameter in bucket]  # type: ignore[union-attr]
        flat = torch.cat([part.flatten() for part in parts])
        flat = funcol.wait_tensor(funcol.all_reduce(flat, "sum", group))
        for parameter, total in zip(bucket, flat.split([part.numel() for part in parts]), strict=True):
            grad = parameter.grad
            assert isinstance(grad, DTensor)
            # (a parameter is partial along one dimension: a layer is split by one axis)
            placements = [Replicate() if isinstance(placement, Partial) else placement for placement in grad.placements]
            parameter.grad = DTensor.from_local(
                total.view_as(grad.to_local()), grad.device_mesh, placements, shape=grad.shape, stride=grad.stride()
            )


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@torch.no_grad()
def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the 2-norm of all gradients together, () on every process.

    torch's own function supports gradients of one device mesh only; experts are split over another one.

    Args:
        parameters: Parameters of any meshes; those without a gradient are skipped.
    """
    by_mesh: dict[Any, list[Tensor]] = defaultdict(list)
    for gradient in _gradients(parameters):
        by_mesh[gradient.device_mesh if isinstance(gradient, DTensor) else None].append(gradient)
    norms = [nn.utils.get_total_norm(group) for group in by_mesh.values()]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    if len(norms) == 1:
        return norms[0]
    return torch.stack(norms).square().sum().sqrt() if norms else torch.zeros(())


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor | None = None) -> None:
    """Scale gradients in place to a norm of at most `max_norm`.

    Args:
        parameters: Parameters of any meshes.
        max_norm: The limit.
        norm: () norm of all gradients; None = of those of `parameters`.
    """
    parameters = list(parameters)
    norm = total_norm(parameters) if norm is None else norm
    shards = [g.to_local() if isinstance(g, DTensor) else g for g in _gradients(parameters)]
    if shards:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as in torch.nn.utils
        factor = factor.to(shards[0].device)
        if factor.is_cpu:  # there, the joint operation would read the factor, and a plan's simulation has no values
            for shard in shards:
                shard.mul_(factor)
        else:
            torch._foreach_mul_(shards, factor)


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
