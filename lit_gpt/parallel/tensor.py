"""Tensor parallelism: heads and the MLP's width split over devices.

As in Megatron-LM (arXiv:1909.08053): q, k, v, gate and up by columns, o and down by rows, so each half of a block
needs one all-reduce. Embeddings, norms and the head are replicated over the tensor-parallel devices, each of which
computes them in full. They are DTensors nonetheless, because gradient clipping and optimizers do not support mixing
DTensors and plain tensors.

B batch, T time, H heads, D head size.
"""

from typing import Any

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


class Replicated(ParallelStyle):
    """The complete module on every device: its parameters are DTensors, its inputs and outputs plain tensors."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(_: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
            return (DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False), *inputs[1:])

        def leave(_: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
            return output.to_local()

        return distribute_module(module, device_mesh, input_fn=enter, output_fn=leave)  # type: ignore[arg-type]


def check_tensor_parallel(config: GPTConfig, size: int) -> None:
    """Raise if the model cannot be divided among this number of tensor-parallel devices.

    Raises:
        UserError: With the part that cannot be divided.
    """
    counts = {"n_head": config.n_head, "n_kv_head": config.num_kv_heads, "intermediate_size": config.mlp_size}
    for name, count in counts.items():
        if count % size:
            raise UserError(
                f"{name} {count} is not divisible by the {size} tensor-parallel devices; set tensor to a divisor of it"
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
                f"tensor parallelism does not support models with {name}; set tensor: 1 and shard over data "
                "instead (FSDP2)"
            )


def apply_tensor_parallel(model: GPT, mesh: DeviceMesh) -> None:
    """Split the layers of a model in place.

    Args:
        model: A model that `check_tensor_parallel` accepts.
        mesh: The tensor axis.
    """
    config = model.config
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
