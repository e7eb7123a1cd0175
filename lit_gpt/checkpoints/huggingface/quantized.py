"""Dequantize weights that are only published in 8 or 4 bits to bfloat16, one tensor at a time.

- **FP8** (DeepSeek-V3; Mistral 4): float8 values with `<name>_scale_inv`, one scale per block of `weight_block_size`
  (arXiv:2412.19437, section 3.3), or one for the tensor.
- **MXFP4** (GPT-OSS): `<name>_blocks`, two values per byte, low bits first, with `<name>_scales`, one exponent per 32
  values (OCP Microscaling Formats 1.0, section 5).

Exports are not quantized again.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_gpt.checkpoints.huggingface.tensors import Stored
from lit_gpt.errors import UserError

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of E2M1: one sign bit, two exponent bits, one mantissa bit."""
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_ACTIVATIONS = ("activation_scale", "input_scale")
"""Suffixes of activation scales, which are needed only for quantized arithmetic."""


def check_quantization(values: Mapping[str, Any]) -> None:
    """Raise if config.json has a quantization method that cannot be dequantized.

    Args:
        values: Contents of config.json, or the language model's part of it.

    Raises:
        UserError: If the method is not supported; the message names it.
    """
    method = _config(values).get("quant_method")
    if _config(values) and method not in _METHODS:
        raise UserError(
            f"config.json has a quantization_config of method {method!r}; lit_gpt supports {' and '.join(_METHODS)}; "
            "import the model's unquantized weights"
        )


def dequantized(values: Mapping[str, Any], stored: dict[str, Stored]) -> dict[str, Stored]:
    """Return the tensors under their unquantized names, each dequantized when it is read.

    Args:
        values: Contents of config.json, or the language model's part of it.
        stored: Tensors on disk, by name.

    Raises:
        UserError: If a quantized tensor has no scales.
    """
    config = _config(values)
    if not config:
        return stored
    check_quantization(values)
    return _METHODS[config["quant_method"]](config, stored)


def _config(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values.get("quantization_config") or (values.get("text_config") or {}).get("quantization_config") or {}


def _from_fp8(config: Mapping[str, Any], stored: dict[str, Stored]) -> dict[str, Stored]:
    kept = {name: tensor for name, tensor in stored.items() if not name.endswith(("_scale_inv", *_ACTIVATIONS))}
    block_size = config.get("weight_block_size")
    pair = isinstance(block_size, list) and len(block_size) == 2
    if block_size is not None and not (pair and all(type(size) is int and size > 0 for size in block_size)):
        raise UserError(f"config.json has weight_block_size {block_size!r}; it must be two positive integers")
    for name, tensor in kept.items():
        if tensor.dtype in _FP8:
            scales = stored.get(f"{name}_scale_inv")
            if scales is None:
                raise UserError(f"{name} is float8 but has no {name}_scale_inv; fetch the model again")
            read = partial(_read_fp8, tensor, scales, block_size)
            kept[name] = Stored(read, torch.bfloat16, tensor.shape)
    return kept


def _read_fp8(weight: Stored, scales: Stored, block_size: list[int] | None) -> Tensor:
    return dequantize_fp8(weight.read(), scales.read(), block_size)


def dequantize_fp8(weight: Tensor, scales: Tensor, block_size: list[int] | None = None) -> Tensor:
    """Multiply float8 values by the scale of their block.

    Args:
        weight: Quantized values, (..., M, N) float8.
        scales: Scales, (..., ceil(M / m), ceil(N / n)) float; or a scalar, or one per matrix of a stack.
        block_size: Size [m, n] of a block; None: derived from the shapes, which must divide evenly.

    Returns:
        The dequantized weight, (..., M, N) bfloat16.

    Raises:
        UserError: If the number of scales does not match the number of blocks.
    """
    wide, scales = weight.float(), scales.float()
    if scales.dim() < weight.dim():  # one scale for the tensor, or one per matrix
        return wide.mul_(scales.reshape(*scales.shape, *[1] * (weight.dim() - scales.dim()))).to(torch.bfloat16)
    for dim, given in zip((-2, -1), block_size or (None, None), strict=True):
        length, count = weight.shape[dim], scales.shape[dim]
        size = length // count if given is None else given
        if size < 1 or -(-length // size) != count or (given is None and length % count):
            raise UserError(
                f"a float8 matrix of {tuple(weight.shape)} has scales of {tuple(scales.shape)}, which is not one per "
                f"block of {block_size or 'any size'}; quantization_config in config.json must contain the right "
                "weight_block_size"
            )
        scales = scales.repeat_interleave(size, dim).narrow(dim, 0, length)
    return wide.mul_(scales).to(torch.bfloat16)


def _from_mxfp4(config: Mapping[str, Any], stored: dict[str, Stored]) -> dict[str, Stored]:
    found = dict(stored)
    for name in stored:
        if not name.endswith("_blocks"):
            continue
        base = name.removesuffix("_blocks")
        blocks, scales = found.pop(name), found.pop(f"{base}_scales", None)
        if scales is None:
            raise UserError(f"{name} has no {base}_scales; fetch the model again")
        E, outputs, groups, half = blocks.shape
        shape = (E, groups * half * 2, outputs)
        found[base] = Stored(partial(_read_mxfp4, blocks, scales), torch.bfloat16, shape)
    return found


def _read_mxfp4(blocks: Stored, scales: Stored) -> Tensor:
    return dequantize_mxfp4(blocks.read(), scales.read()).transpose(1, 2)


def dequantize_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Multiply 4-bit values by their group's power of two.

    Args:
        blocks: Quantized values, (E, M, G, 16) uint8, two values per byte.
        scales: Exponents with a bias of 127, (E, M, G) uint8.

    Returns:
        The dequantized weight, (E, M, 32 G) bfloat16.
    """
    E, M, G, _ = blocks.shape
    signed = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    pairs = torch.stack((signed.repeat(16), signed.repeat_interleave(16)), dim=1)  # (256, 2): the two values of a byte
    out = torch.empty(E, M, G * 32, dtype=torch.bfloat16)
    for e in range(E):  # one expert at a time, to keep temporary copies small
        values = pairs[blocks[e].int()].flatten(-2)  # (M, G, 32)
        out[e] = torch.ldexp(values, scales[e].int().unsqueeze(-1) - 127).flatten(-2)
    return out


_Method = Callable[[Mapping[str, Any], dict[str, Stored]], dict[str, Stored]]
_METHODS: dict[str, _Method] = {"fp8": _from_fp8, "mxfp4": _from_mxfp4}
