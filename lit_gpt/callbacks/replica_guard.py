"""`ReplicaGuard`: finds a process whose weights silently differ from those of its replicas.

A flipped bit in memory, or a device that computes wrongly, raises no error: one copy of the weights drifts away, and
with each all-reduce it spoils the others (Dixit et al. 2021, "Silent Data Corruptions at Scale", arXiv:2102.11245).
Copies must be equal bit for bit, because they start equal and get the same gradients. So every few steps each process
hashes what it holds, and all compare: under DDP all processes hold copies, under `ParallelStrategy` those along
`replicate`, and along `tensor` for norms and whatever else is replicated there. Shards without a copy (FSDP2 alone)
cannot be compared.
"""

import socket
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_gpt.checks import check_at_least
from lit_gpt.errors import UserError

CHUNK = 2**22
"""Elements that are hashed at once, which bounds the memory that it takes to 100 MB."""


class ReplicaGuard(Callback):
    """Compares the weights of all replicas, and ends the run with the name of the process that deviates.

    Args:
        every_n_steps: optimizer steps between two comparisons; one reads all weights of a device once.

    Raises:
        UserError: the number is below 1.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        check_at_least("every_n_steps of ReplicaGuard", every_n_steps, 1)
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare, if this step is due.

        Raises:
            UserError: the weights of a process differ from those of its replicas.
        """
        if trainer.world_size > 1 and trainer.global_step % self.every_n_steps == 0:
            self.compare(trainer, pl_module)

    def compare(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the weights of all replicas; every process calls it.

        Raises:
            UserError: weights that should be equal differ; the message names process and host.
        """
        mesh = getattr(pl_module, "device_mesh", None)
        hashes = _hashes(pl_module, () if mesh is None else mesh.mesh_dim_names)
        if mesh is None:
            groups = [torch.arange(trainer.world_size)[None]]
        else:
            # Rows of ranks that differ in one coordinate alone.
            groups = [mesh.mesh.movedim(i, -1).reshape(-1, size) for i, size in enumerate(mesh.shape)]
        everyone = torch.empty(trainer.world_size * len(groups), dtype=torch.int64, device=hashes.device)
        dist.all_gather_into_tensor(everyone, hashes)
        everyone = everyone.view(trainer.world_size, len(groups)).cpu()
        wrong: dict[int, list[int]] = {}
        for axis, rows in enumerate(groups):
            for ranks in rows.tolist():
                found = [int(value) for value in everyone[ranks, axis].tolist()]
                usual, count = Counter(found).most_common(1)[0]
                if count == len(ranks):
                    continue
                # Of two, or without a majority, no one knows which is right.
                unusual = [rank for rank, value in zip(ranks, found, strict=True) if value != usual]
                for rank in unusual if count > len(ranks) / 2 else ranks:
                    wrong[rank] = ranks
        if not wrong:
            return
        hosts: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(hosts, socket.gethostname())
        names = ", ".join(f"process {rank} on {hosts[rank]}" for rank in sorted(wrong))
        others = sorted({rank for ranks in wrong.values() for rank in ranks} - wrong.keys())
        against = f"processes {', '.join(map(str, others))} that hold the same" if others else "one another"
        raise UserError(
            f"after step {trainer.global_step} the weights of {names} differ from those of {against}: memory or a "
            f"device is faulty, in the last {self.every_n_steps} steps. Resume from an earlier checkpoint without it"
        )


def _hashes(module: nn.Module, axes: tuple[str, ...] | None) -> Tensor:
    """Return (axes,) int64 hashes of the weights that are replicated along each axis; without axes (1,), of all."""
    device = next(module.parameters()).device
    hashes = torch.zeros(max(1, len(axes or ())), dtype=torch.int64, device=device)
    for parameter in module.parameters():
        if not axes:
            hashes[0] = 31 * hashes[0] + _hash(parameter.detach())
        elif isinstance(parameter, DTensor):
            names = parameter.device_mesh.mesh_dim_names or ()
            sharded = {name for name, p in zip(names, parameter.placements, strict=True) if not p.is_replicate()}
            value = _hash(parameter.to_local().detach())
            for i, axis in enumerate(axes):
                # Axes that the parameter's mesh lacks hold copies, too, if FSDP does not run over them.
                if axis == "replicate" or (axis in names and axis not in sharded):
                    hashes[i] = 31 * hashes[i] + value
    return hashes


def _hash(tensor: Tensor) -> Tensor:
    """Return an int64 that any change of a single bit of a tensor changes."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.contiguous().view(-1).view(kinds[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, bits.numel(), CHUNK):
        part = bits[start : start + CHUNK].to(torch.int64)
        # Odd weights have an inverse modulo 2^64, so that no single change can cancel.
        weights = torch.arange(start, start + part.numel(), device=part.device) * 2 + 1
        total = total + (part * weights).sum()
    return total
