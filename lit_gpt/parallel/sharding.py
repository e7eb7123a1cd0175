"""Sharding a GPT over a device mesh: every axis is applied here, in the only order in which they compose.

Tensor parallelism comes first, because FSDP2 shards what a tensor-parallel rank holds; FSDP2 comes last, with one
group of parameters per block and one for the rest.
"""

import torch
from torch.distributed.device_mesh import DeviceMesh

from lit_gpt.errors import UserError
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.gpt import GPT
from lit_gpt.parallel.context import check_context_parallel
from lit_gpt.parallel.layout import AXES, Layout, fsdp_mesh
from lit_gpt.parallel.tensor import apply_tensor_parallel, check_tensor_parallel


def check_model(config: GPTConfig, layout: Layout) -> None:
    """Raise if a model cannot be divided as a layout says.

    Raises:
        UserError: With the part that cannot be divided, and the axis to change.
    """
    if layout.tensor > 1:
        check_tensor_parallel(config, layout.tensor)
    if layout.context > 1:
        check_context_parallel(config)


def parallelize(model: GPT, mesh: DeviceMesh, all_gather_dtype: torch.dtype = torch.float32) -> GPT:
    """Shard a model in place; axes of size 1 have no effect.

    Args:
        model: Unsharded model, preferably on the meta device; call `to_empty` afterwards, then `init_weights` or load
            a checkpoint.
        mesh: The mesh of `Layout.build_mesh`.
        all_gather_dtype: Dtype of the parameters that FSDP2 gathers to compute; gradients are reduced in float32.

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
    check_model(model.config, Layout(**dict(zip(AXES, mesh.shape, strict=True))))
    if mesh["tensor"].size() > 1:
        apply_tensor_parallel(model, mesh["tensor"])
    data = fsdp_mesh(mesh)
    if data.size() > 1:
        _shard(model, data, all_gather_dtype)
    return model


def _shard(model: GPT, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if dtype != torch.float32:
        # Inputs are not cast: among them are RoPE's tables, which need float32.
        policy = MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in (*model.blocks, *(model.multi_token or ())):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Embedding and head stay in the root's group: tied, they are one parameter, needed both first and last.
    fully_shard(model, mesh=mesh, mp_policy=policy)
