"""Sharding a GPT over devices: FSDP2, tensor parallelism, or both.

Tensor parallelism splits heads and the MLP's width (Megatron-LM, arXiv:1909.08053): q, k, v, gate and up by columns,
o and down by rows, so each half of a block needs one all-reduce. Embeddings, norms and the head are replicated over
the tensor-parallel devices, each of which computes them in full. They are DTensors nonetheless, because gradient
clipping and optimizers do not support mixing DTensors and plain tensors. FSDP2 then shards every parameter over the
data-parallel devices, with one group per block and one for the rest.

B batch, T time, H heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from lit_gpt.errors import UserError
from lit_gpt.models.choices import GATED
from lit_gpt.models.config import GPTConfig
from lit_gpt.models.gpt import GPT
from lit_gpt.models.mixers import BUILT_IN

DATA_PARALLEL, TENSOR_PARALLEL = "data_parallel", "tensor_parallel"
"""Names of the mesh dimensions, as in Lightning's ModelParallelStrategy."""


class Replicated(ParallelStyle):
    """The complete module on every device: its parameters are DTensors, its inputs and outputs plain tensors."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
            return (DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False), *inputs[1:])

        def leave(_: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
            return output.to_local()

        return distribute_module(module, device_mesh, input_fn=enter, output_fn=leave)  # type: ignore[arg-type]


def parallelize(model: GPT, device_mesh: DeviceMesh, all_gather_dtype: torch.dtype = torch.float32) -> GPT:
    """Shard a model in place; mesh dimensions that are missing or of size 1 have no effect.

    Args:
        model: Unsharded model, preferably on the meta device; call `to_empty` afterwards, then `init_weights` or load
            a checkpoint.
        device_mesh: With dimensions "data_parallel" and "tensor_parallel".
        all_gather_dtype: Of the parameters that FSDP2 gathers for computing; gradients are reduced in float32.

    Returns:
        The same model.

    Raises:
        UserError: If the heads, key/value heads or MLP width cannot be divided among the tensor-parallel devices.
    """
    names = device_mesh.mesh_dim_names or ()
    if TENSOR_PARALLEL in names and device_mesh[TENSOR_PARALLEL].size() > 1:
        _tensor_parallel(model, device_mesh[TENSOR_PARALLEL])
    if DATA_PARALLEL in names and device_mesh[DATA_PARALLEL].size() > 1:
        _shard(model, device_mesh[DATA_PARALLEL], all_gather_dtype)
    return model


def check_tensor_parallel(config: GPTConfig, size: int) -> None:
    """Raise if the model cannot be divided among this number of tensor-parallel devices.

    Raises:
        UserError: With the part that cannot be divided.
    """
    counts = {"n_head": config.n_head, "n_kv_head": config.num_kv_heads, "intermediate_size": config.mlp_size}
    for name, count in counts.items():
        if count % size:
            raise UserError(
                f"{name} {count} is not divisible by the {size} tensor-parallel devices; "
                "set tensor_parallel_size to a divisor of it"
            )
    whole_heads = {
        "mla": config.mla is not None,
        "moe": config.moe is not None,
        "positions: alibi": config.positions == "alibi",
        "attention_sinks": config.attention_sinks,
        "qk_norm: projection": config.qk_norm == "projection",
        "multi_token": config.multi_token > 0,
        "layer_types of other packages": any(name not in BUILT_IN for name in config.layer_types or ()),
    }
    for name, present in whole_heads.items():
        if present:
            raise UserError(
                f"tensor parallelism does not support models with {name}; set tensor_parallel_size: 1 and shard over "
                "data_parallel_size instead (FSDP2)"
            )


def _tensor_parallel(model: GPT, mesh: DeviceMesh) -> None:
    config = model.config
    check_tensor_parallel(config, mesh.size())
    plan: dict[str, ParallelStyle] = {
        "ln1": Replicated(),
        "attn.q_proj": ColwiseParallel(),
        "attn.k_proj": ColwiseParallel(),
        "attn.v_proj": ColwiseParallel(),
        "attn.o_proj": RowwiseParallel(),
        "ln2": Replicated(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    if config.qk_norm:
        # (B, T, H, D) sharded over H: "sequence" parallel along dimension 2, so that the gain's gradient, to which
        # each device contributes the part of its own heads, is summed over devices.
        plan["attn.q_norm"] = SequenceParallel(sequence_dim=2, use_local_output=True)
        plan["attn.k_norm"] = SequenceParallel(sequence_dim=2, use_local_output=True)
    if config.norm_placement == "sandwich":
        plan |= {"ln1_out": Replicated(), "ln2_out": Replicated()}
    if config.mlp in GATED:
        plan["mlp.gate_proj"] = ColwiseParallel()
    for block in model.blocks:
        parallelize_module(block, mesh, plan)
    outer: dict[str, ParallelStyle] = {"wte": Replicated(), "ln_f": Replicated()}
    if model.wpe is not None:
        outer["wpe"] = Replicated()
    parallelize_module(model, mesh, outer)
    if config.tie_embeddings:
        model.lm_head.weight = model.wte.weight
    else:
        distribute_module(model.lm_head, mesh)  # its forward uses the local copy of the weight


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
