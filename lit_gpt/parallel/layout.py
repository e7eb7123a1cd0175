"""`Layout`: how a run is spread over processes, as the size of each axis, and the device mesh of these sizes.

The processes form one mesh. Its dimensions, outermost first, so that neighbours on the last one share a node:

| axis | ranks along it hold | ranks along it see |
|---|---|---|
| `pipeline` | different blocks | the same samples |
| `replicate` | copies of the same shards (HSDP) | different samples |
| `data` | different shards of each parameter (FSDP2) | different samples |
| `context` | different shards of each parameter (FSDP2) | different parts of the same sequences |
| `tensor` | different heads and columns of each layer | the same samples |

Collectives also run over groups of several axes, each a flattened part of the mesh:

- `batch` = replicate x data: the ranks that load different samples.
- `loss` = replicate x data x context: the ranks that hold different tokens, over which losses and counts are summed.
- `shard` = data x context: the ranks among which FSDP2 divides parameters, gradients and optimizer state.

Experts take their ranks from `shard`: the `expert` axis divides data x context, and what is left of it shards each
expert (as in torchtitan, arXiv:2410.06511).
"""

import math
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lit_gpt.checks import check_at_least, check_types
from lit_gpt.errors import UserError

AXES = ("pipeline", "replicate", "data", "context", "tensor")
"""Dimensions of the mesh, outermost first."""

GROUPS = {"batch": ("replicate", "data"), "loss": ("replicate", "data", "context"), "shard": ("data", "context")}
"""Names of the flattened parts of the mesh, and the axes of each."""


@dataclass(frozen=True)
class Layout:
    """Number of processes along each axis; the product of all but `expert` is the number of processes.

    Attributes:
        replicate: copies of the sharded model.
        data: shards of the model, each on a process with samples of its own.
        context: parts of each sequence.
        tensor: parts of each layer.
        pipeline: stages, each with a part of the layers.
        expert: parts of the experts of a mixture; a divisor of data x context.

    Raises:
        UserError: a size is less than 1, or `expert` does not divide data x context.
    """

    replicate: int = 1
    data: int = 1
    context: int = 1
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        for f in fields(self):
            check_at_least(f.name, getattr(self, f.name), 1, "set 1 for an axis that is not used")
        if self.num_shards % self.expert:
            raise UserError(
                f"expert {self.expert} does not divide data {self.data} x context {self.context} = {self.num_shards}, "
                "from which experts take their processes; set it to a divisor"
            )

    @classmethod
    def resolve(cls, world_size: int, data: int | Literal["auto"] = "auto", **sizes: int) -> "Layout":
        """Return the layout of a number of processes.

        Args:
            world_size: number of processes.
            data: size of the data axis; auto: the processes that the other axes leave.
            sizes: sizes of the other axes, 1 where missing.

        Raises:
            UserError: the sizes do not multiply to the number of processes.
        """
        if isinstance(data, str) and data != "auto":
            raise UserError(f"data is {data}; set it to auto or to a number of processes")
        rest = cls(**sizes | {"expert": 1}).world_size
        # At least 1, so that the message below names the sizes that the user has set.
        number = max(1, world_size // rest) if isinstance(data, str) else data
        cls(**sizes | {"expert": 1, "data": number})
        if number * rest != world_size:
            given = {name: size for name, size in {**sizes, "data": number}.items() if name in AXES}
            product = " x ".join(f"{name} {given[name]}" for name in AXES if name in given)
            raise UserError(
                f"{product} = {number * rest} processes, but the run has {world_size}; change an axis of the strategy, "
                f"or run {number * rest} processes (trainer.devices x trainer.num_nodes)"
            )
        return cls(data=number, **sizes)

    @property
    def world_size(self) -> int:
        """Number of processes, one a device."""
        return math.prod(getattr(self, axis) for axis in AXES)

    @property
    def num_shards(self) -> int:
        """Number of processes among which FSDP2 divides each parameter."""
        return self.data * self.context

    @property
    def num_batch_ranks(self) -> int:
        """Number of processes, or groups of them, that load different samples."""
        return self.replicate * self.data

    @property
    def cuts_model(self) -> bool:
        """Whether a process holds less than the whole model."""
        return self.num_shards * self.tensor * self.pipeline > 1

    def describe(self, total: int, local: tuple[int, int], per_node: int) -> str:
        """Return who holds what, in at most three lines.

        Args:
            total: parameters of the whole model.
            local: least and most parameters that a process holds.
            per_node: processes of a node.
        """
        used = [axis for axis in AXES if getattr(self, axis) > 1]
        sizes = " x ".join(f"{axis} {getattr(self, axis)}" for axis in used) or "1"
        experts = f"; experts over {self.expert} of data x context" if self.expert > 1 else ""
        least, most = (f"{count / 1e6:,.2f}" for count in local)
        held = most if least == most else f"{least} to {most}"
        parts = [
            f"{self.num_shards} FSDP shards" if self.num_shards > 1 else "",
            f"{self.tensor} tensor-parallel parts" if self.tensor > 1 else "",
            f"{self.pipeline} stages" if self.pipeline > 1 else "",
            f"{self.replicate} copies" if self.replicate > 1 else "",
        ]
        lines = [
            f"layout: {self.world_size} processes = {sizes}{experts}; {self.num_batch_ranks} load different samples",
            f"parameters: each process holds {held} M of {total / 1e6:,.2f} M: {', '.join(filter(None, parts))}",
        ]
        if self.world_size > per_node:
            # Ranks are numbered with the last axis fastest, so the inner axes lie within a node.
            inner, stride = [], 1
            for axis in reversed(used):
                stride *= getattr(self, axis)
                inner += [axis] if stride <= per_node and per_node % stride == 0 else []
            across = [axis for axis in used if axis not in inner]
            lines.append(f"nodes: {', '.join(reversed(inner)) or 'no axis'} within a node, {', '.join(across)} across")
        return "\n".join(lines)

    def build_mesh(self, device_type: str) -> DeviceMesh:
        """Return the mesh with process groups of all axes and of `GROUPS`; a collective that every process calls.

        A process that trains several times under one layout keeps its groups: each costs a thread (gloo), which wakes
        up a hundred times a second, or a communicator (NCCL), and torch frees none of them before the process ends.

        Args:
            device_type: `cpu` or `cuda`.

        Returns:
            The mesh with all dimensions of `AXES`, also those of size 1; `mesh.get_group("loss")` returns the process
            group of an axis or of one of `GROUPS`.
        """
        return _build_mesh(self, device_type, dist.group.WORLD)


@cache
def _build_mesh(layout: Layout, device_type: str, world: dist.ProcessGroup) -> DeviceMesh:
    """See `Layout.build_mesh`; `world` tells the groups of one initialization from those of the next."""
    mesh = init_device_mesh(device_type, tuple(getattr(layout, axis) for axis in AXES), mesh_dim_names=AXES)
    for name in GROUPS:
        flat_mesh(mesh, name)
    return mesh


def flat_mesh(mesh: DeviceMesh, group: str) -> DeviceMesh:
    """Return one of `GROUPS` as a mesh of one dimension; created once per mesh."""
    return mesh[GROUPS[group]]._flatten(group)


def fsdp_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """Return the mesh over which FSDP2 shards: ("shard",), or with replicas ("replicate", "shard") for HSDP."""
    return _with_replicas(mesh, flat_mesh(mesh, "shard"))


def expert_meshes(mesh: DeviceMesh, expert: int) -> tuple[DeviceMesh, DeviceMesh]:
    """Return the mesh of the expert axis, and that over which FSDP2 shards experts; a collective.

    Args:
        mesh: The mesh of `Layout.build_mesh`.
        expert: Size of the axis, a divisor of that of `shard`.

    Returns:
        ("expert",), and ("expert_data",) or with replicas ("replicate", "expert_data").
    """
    return _expert_meshes(mesh, expert, dist.group.WORLD)


@cache
def _expert_meshes(mesh: DeviceMesh, expert: int, world: dist.ProcessGroup) -> tuple[DeviceMesh, DeviceMesh]:
    shard = flat_mesh(mesh, "shard")
    view = shard._unflatten(0, (shard.size() // expert, expert), ("expert_data", "expert"))
    return view["expert"], _with_replicas(mesh, view["expert_data"])


def _with_replicas(mesh: DeviceMesh, shard: DeviceMesh) -> DeviceMesh:
    # torch's public slicing of a flattened dimension is deprecated; FSDP2 itself concatenates its meshes like this.
    return shard if mesh["replicate"].size() == 1 else DeviceMesh._concatenate([mesh["replicate"], shard])
