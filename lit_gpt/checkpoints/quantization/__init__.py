"""Quantized models: linear layers in 8 or 4 bits through torchao, stored as a bundle of plain tensors."""

from lit_gpt.checkpoints.quantization.bundle import (
    CALLBACK,
    QuantizedBundle,
    is_quantized_bundle,
    read_quantized_bundle,
    save_quantized_bundle,
    trained_for,
)
from lit_gpt.checkpoints.quantization.scheme import (
    Method,
    Quantization,
    check_scheme,
    need_torchao,
    quantizable_layers,
    quantize_weight,
)

__all__ = [
    "CALLBACK",
    "Method",
    "Quantization",
    "QuantizedBundle",
    "check_scheme",
    "is_quantized_bundle",
    "need_torchao",
    "quantizable_layers",
    "quantize_weight",
    "read_quantized_bundle",
    "save_quantized_bundle",
    "trained_for",
]
