"""Sharding a GPT over a device mesh: every axis is applied here, in the only order in which they compose.

A pipeline comes first: the other axes divide only the parts that a rank holds. Then tensor parallelism, because experts
are spread and FSDP2 shards what a tensor-parallel rank holds; FSDP2 comes last, with one group of parameters per block,
one per mixture of experts that are spread, and one for the rest.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.gpt import GPT
from lit_gpt.models.moe import Experts
from lit_gpt.parallel.context import check_context_parallel
from lit_gpt.parallel.expert import apply_expert_parallel, check_expert_parallel
from lit_gpt.parallel.layout import AXES, Layout, expert_meshes, fsdp_mesh
from lit_gpt.parallel.pipeline import Pipeline
from lit_gpt.parallel.tensor import apply_tensor_parallel, check_tensor_parallel


def check_model(config: GPTConfig, layout: Layout) -> None:
    """Raise if a model cannot be divided as a layout says.

    Raises:
        UserError: With the part that cannot be divided, and the axis to change.
    """
    if layout.expert > 1:
        if config.moe is None:
            raise UserError(f"expert is {layout.expert}, but the model has no mixture of experts; set expert to 1")
        if config.moe.num_experts % layout.expert:
            raise UserError(
                f"num_experts {config.moe.num_experts} is not divisible by expert {layout.expert}; set expert to a "
                "divisor of it"
            )
    if layout.tensor > 1:
        check_tensor_parallel(config, layout.tensor)
    if layout.context > 1:
        check_context_parallel(config)
    if layout.expert > 1:
        check_expert_parallel(config, layout.expert)


def parallelize(
    model: GPT,
    mesh: DeviceMesh,
    all_gather_dtype: torch.dtype = torch.float32,
    pipeline: Pipeline | None = None,
    reshard_after_forward: bool = True,
    expert: int = 1,
) -> GPT:
    """Shard a model in place; axes of size 1 have no effect.

    Args:
        model: Unsharded model, preferably on the meta device; call `to_empty` afterwards, then `init_weights` or load
            a checkpoint.
        mesh: The mesh of `Layout.build_mesh`.
        all_gather_dtype: Dtype of the parameters that FSDP2 gathers to compute; gradients are reduced in float32.
        pipeline: The pipeline that the model has been cut for; None = the model has all blocks.
        reshard_after_forward: Whether the gathered parameters of a block are freed after its forward pass, and
            gathered again for its backward pass.
        expert: Size of the expert axis.

    Returns:
        The same model.

    Raises:
        UserError: If the model cannot be divided, or the mesh has other dimensions.
    """
    if mesh.mesh_dim_names != AXES:
        raise UserError(
            f"the device mesh has dimensions {', '.join(mesh.mesh_dim_names or ())} and not {', '.join(AXES)}; set "
            "trainer.strategy to lit_gpt.plugins.ParallelStrategy"
        )
    check_model(model.config, Layout(**dict(zip(AXES, mesh.shape, strict=True)), expert=expert))
    tensor = mesh["tensor"] if mesh["tensor"].size() > 1 else None
    if tensor is not None:
        apply_tensor_parallel(model, tensor)
        if pipeline is not None:
            pipeline.sequence_parts = tensor.size()
    experts: list[Experts] = []
    experts_mesh = None
    if expert > 1:
        expert_mesh, experts_mesh = expert_meshes(mesh, expert)
        experts = apply_expert_parallel(model, expert_mesh, tensor)
    stages = [] if pipeline is None else pipeline.build_stages()
    data = fsdp_mesh(mesh)
    if data.size() > 1:
        _shard(model, stages, data, all_gather_dtype, reshard_after_forward, experts, experts_mesh)
        if pipeline is not None and all_gather_dtype != torch.float32:
            pipeline.hidden_dtype = all_gather_dtype
    return model


def _shard(
    model: GPT,
    stages: Sequence[nn.Module],
    mesh: DeviceMesh,
    dtype: torch.dtype,
    reshard: bool,
    experts: list[Experts],
    experts_mesh: DeviceMesh | None,
) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if dtype != torch.float32:
        # Inputs are not cast: among them are RoPE's tables, which need float32.
        policy = MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # The schedules of a pipeline gather a stage's parameters once an optimizer step, and reduce its gradients once.
    reshard = reshard and not stages
    ignored: set[nn.Parameter] = set()
    for module in experts:
        if experts_mesh is not None and experts_mesh.size() > 1:
            even = _even(experts_mesh)
            fully_shard(
                module, mesh=experts_mesh, mp_policy=policy, reshard_after_forward=reshard, shard_placement_fn=even
            )
        else:  # each process holds its experts whole
            ignored |= set(module.parameters())
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": policy,
        "reshard_after_forward": reshard,
        "ignored_params": ignored,
    }
    for block in (*model.blocks, *(model.multi_token or ())):
        fully_shard(block, **options)
    # Embedding and head stay in the root's group: tied, they are one parameter, needed both first and last, so that
    # freeing them in between would save nothing.
    for root in stages or [model]:
        fully_shard(root, **options | {"reshard_after_forward": False})


def _even(mesh: DeviceMesh) -> Callable[[nn.Parameter], Shard]:
    """Return FSDP2's choice of dimension: the first one that it divides evenly, because experts may be few."""
    size = mesh.size(-1)

    def placement(parameter: nn.Parameter) -> Shard:
        assert isinstance(parameter, DTensor)
        sizes = parameter.to_local().shape
        return Shard(next((dim for dim in range(len(sizes)) if sizes[dim] % size == 0), 0))

    return placement
