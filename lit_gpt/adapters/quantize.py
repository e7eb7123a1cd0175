"""Frozen linear layers in 4 or 8 bits, and the rounded weights that they compute with.

| | library | CPU | CUDA |
|---|---|---|---|
| `nf4` | bitsandbytes `Linear4bit` (double quantization, blocks of 64) | yes, dequantized a layer at a time | yes |
| `int8` | torchao weight-only | yes | yes |

torchao's own 4-bit weights are not supported, because peft does not accept them under an adapter (`Int4Tensor`).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_gpt.extras import need

Kind = Literal["nf4", "int8"]


def quantized_linear(linear: nn.Linear, kind: Kind) -> nn.Module:
    """Return a frozen layer that computes the same as `linear` with a rounded weight, on the same device."""
    if kind == "nf4":
        bitsandbytes: Any = need("bitsandbytes", "adapters", "adapter.quantize: nf4")
        dtype = linear.weight.dtype
        with torch.device("meta"):  # no allocation or random initialization of a weight that is replaced
            layer = bitsandbytes.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=dtype,
                quant_type="nf4",
                compress_statistics=True,
            )
        layer.weight = bitsandbytes.nn.Params4bit(
            linear.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        # On CPUs with AVX512-BF16, it would repack the weight in evaluation and compute in bfloat16, which changes the
        # outputs by about 1 % relative to training.
        layer.support_avx512bf16_for_cpu = False
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        result: nn.Module = layer.to(linear.weight.device)  # quantizes
        return result
    need("torchao", "adapters", "adapter.quantize: int8")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    holder = nn.Sequential(linear)
    quantize_(holder, Int8WeightOnlyConfig())
    return holder[0]


def rounded_weight(weight: Tensor, kind: Kind) -> Tensor:
    """Return the weight that the quantized layer computes with, in the dtype of `weight`.

    Args:
        weight: (out, in).
        kind: Kind of quantization.
    """
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    layer: Any = quantized_linear(linear, kind)
    with torch.no_grad():
        if kind == "nf4":
            bitsandbytes: Any = need("bitsandbytes", "adapters", "adapter.quantize: nf4")
            state = layer.weight.quant_state
            whole: Tensor = bitsandbytes.functional.dequantize_4bit(layer.weight.data, state)
        else:
            whole = layer.weight.dequantize()
    return whole.to(weight.dtype).reshape(weight.shape)
