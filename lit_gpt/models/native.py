"""Kernels compiled on this machine (`native.c`): products with 4-bit or 8-bit weights, and the operations in between.

Torch's kernels are made for many tokens. For one, most of a decoding step is the overhead of its operations, hundreds
of them, and the integer products run at half the memory's speed. The kernels here are C without dependencies, compiled
(`lit_gpt.compiled`) when packed weights are first used, which takes two seconds. They are options among others: without
a compiler, or where torch is faster, torch's kernels are used as before.

O outputs and I inputs of a layer, G groups of inputs, N tokens, B rows, H heads, K key/value heads, S keys, D head
size.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models import mlp
from lit_gpt.models.attention import SelfAttention
from lit_gpt.models.kernel_choice import compile_kernels
from lit_gpt.models.mlp import MLP
from lit_gpt.models.norms import OffsetRMSNorm, RMSNorm
from lit_gpt.models.positions import Rotation, apply_rope


@cache
def library() -> Any:
    """Return the compiled kernels for decoding; None if they are turned off or cannot be compiled here."""
    kernels = compile_kernels(Path(__file__).with_name("native.c"))
    if kernels is None:
        return None
    address: Any = ctypes.c_void_p
    number: Any = ctypes.c_int64
    for product in (kernels.product, kernels.float_product):
        product.argtypes = [address, address, number, address, ctypes.c_int]
    kernels.rms_norm.argtypes = [address, address, number, number, ctypes.c_float, address]
    kernels.swiglu.argtypes = [address, address, number, number, number, address]
    kernels.rope.argtypes = [address, address, address, *[number] * 4]
    keys = [address, number, number, number]
    kernels.store.argtypes = [*[address, number] * 2, address, *keys, *keys, *[number] * 3]
    kernels.attend.argtypes = [address, number, *keys, *keys, address, number, address, *[number] * 4]
    kernels.attend.argtypes += [ctypes.c_int, ctypes.c_float, ctypes.c_int]
    kernels.rms_norm.restype = kernels.swiglu.restype = kernels.rope.restype = kernels.store.restype = None
    return kernels


class _Weight(ctypes.Structure):
    """`Weight` in native.c."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("bits", ctypes.c_int64),
    )


GROUP, PANEL = 32, 16
"""Inputs that share a scale and a minimum; outputs that are computed together. I and O are multiples of them."""


class NativeMatrix:
    """A matrix (O, I) in the layout of the kernels.

    Args:
        weight: (O, I) float32 or bfloat16; or uint8 codes u of a matrix s u + m.
        scale: (O, G) float s, per group of 32 inputs, with at most eight binary digits (stored in bfloat16).
        minimum: (O, G) float m, likewise.
        bits: Per weight: 4 or 8 for codes, 16 for bfloat16, 32 for float32.
    """

    def __init__(
        self, weight: Tensor, scale: Tensor | None = None, minimum: Tensor | None = None, bits: int = 32
    ) -> None:
        outputs, inputs = weight.shape
        address = None
        if scale is None or minimum is None:
            panels = weight.view(outputs // PANEL, PANEL, -1, 32 // bits).permute(0, 2, 1, 3)  # see native.c
        else:
            panels = weight.view(-1, PANEL, inputs // GROUP, 8, 4).permute(0, 2, 3, 1, 4)
            if bits == 4:
                panels = panels[:, :, :4] | (panels[:, :, 4:] << 4)
            scales = torch.stack((scale, minimum), dim=2).view(-1, PANEL, inputs // GROUP, 2).permute(0, 2, 3, 1)
            self._scales = scales.to(torch.bfloat16).contiguous()
            address = self._scales.data_ptr()
        self._weight = panels.contiguous()
        self._described = _Weight(self._weight.data_ptr(), address, outputs, inputs, bits)
        self._address = ctypes.addressof(self._described)
        self._outputs, self._inputs = outputs, inputs
        self._product = library().float_product if address is None else library().product

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ, (..., I) → (..., O) float32.

        Inputs are rounded: for codes to 8 bits per group of 32, for bfloat16 weights to bfloat16 where the processor
        has products of it.
        """
        # torch.compile cannot trace the call: its graph breaks here.
        return _untraced(self, x) if torch.compiler.is_compiling() else self.multiply(x)

    def multiply(self, x: Tensor) -> Tensor:
        """See `__call__`."""
        x = x.contiguous() if x.dtype == torch.float32 else x.float().contiguous()
        y = torch.empty((*x.shape[:-1], self._outputs), dtype=torch.float32)
        threads = torch.get_num_threads()
        failed = self._product(self._address, x.data_ptr(), x.numel() // self._inputs, y.data_ptr(), threads)
        if failed:
            raise MemoryError
        return y


_untraced = torch.compiler.disable(NativeMatrix.multiply)


def quantized_groups(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (O, I), scales and minima (O, G) of a float weight (O, I): equidistant values in each group's range.

    Scale and minimum are rounded to eight binary digits first, so that the range still contains the whole group.
    """
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.aminmax(dim=2)
    minimum = _eight_digits(low, torch.floor)
    scale = _eight_digits(((high - minimum) / (2**bits - 1)).clamp_(min=1e-12), torch.ceil)
    codes = torch.round((groups - minimum[..., None]) / scale[..., None])
    return codes.flatten(1).to(torch.uint8), scale, minimum


def _eight_digits(x: Tensor, rounded: Any) -> Tensor:
    fraction, exponent = torch.frexp(x)
    return torch.ldexp(rounded(fraction * 256) / 256, exponent)


class NativeRMSNorm(RMSNorm):
    """RMSNorm in one call.

    Args:
        gain: (C,) float32.
        eps: Added to the mean square.
    """

    def __init__(self, gain: Tensor, eps: float) -> None:
        super().__init__(len(gain), eps=eps, device="meta")
        self.weight = nn.Parameter(gain.contiguous(), requires_grad=False)
        self._arguments = len(gain), eps

    def forward(self, x: Tensor, prepared: bool = False) -> Tensor:
        """Normalize: (..., C) → (..., C)."""
        if not _usable(x) or not x.is_contiguous():
            return super().forward(x, prepared)
        width, eps = self._arguments
        y = torch.empty_like(x)
        library().rms_norm(x.data_ptr(), self.weight.data_ptr(), x.numel() // width, width, eps, y.data_ptr())
        return y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) · up, each (B, T, F)."""
    steps = gate.stride()
    if (
        not _usable(gate)
        or gate.dim() != 3
        or steps != up.stride()
        or steps[2] != 1
        or (gate.shape[0] > 1 and steps[0] != gate.shape[1] * steps[1])
    ):
        return F.silu(gate) * up
    y = torch.empty(gate.shape, dtype=torch.float32)
    size = gate.shape[2]
    library().swiglu(gate.data_ptr(), up.data_ptr(), y.numel() // size, size, steps[1], y.data_ptr())
    return y


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Apply RoPE like `apply_rope`, to (B, T, H, D), if possible in place."""
    cos, sin, _ = rotation
    B, T, H, D = x.shape
    steps = x.stride()
    if not _usable(x) or steps[2:] != (D, 1) or cos.shape != (1, T, 1, D) or B != 1:
        return apply_rope(x, rotation)
    library().rope(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), T, steps[1], H, D)
    return x


def store(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, entries: Tensor) -> bool:
    """Copy one key and one value of each row to its entry.

    Args:
        k: (B, 1, K, D).
        v: (B, 1, K, D).
        keys: (B or more, K, S, D).
        values: (B or more, K, S, D).
        entries: (B,) int64, each below S.

    Returns:
        Whether the kernel supports the shapes; if not, nothing was copied.
    """
    B, _, K, D = k.shape
    k_steps, v_steps = k.stride(), v.stride()
    if not _usable(k) or not keys.dtype == v.dtype == k.dtype or not k_steps[2:] == v_steps[2:] == (D, 1):
        return False
    library().store(
        *(k.data_ptr(), k_steps[0], v.data_ptr(), v_steps[0], entries.data_ptr()),
        *(keys.data_ptr(), *keys.stride()[:3], values.data_ptr(), *values.stride()[:3], B, K, D),
    )
    return True


_FEW_QUERIES = 16
"""Queries of one row that are computed one after another; more are left to torch, which reads the keys only once."""


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor | None:
    """Compute attention of one query per row, or of a few queries of one row, each as if it were alone.

    A few queries of one row are draft tokens: each has, to the bit, the result that it would have as a single token.

    Args:
        q: (B, 1, H, D), or (1, T, H, D).
        keys: (B, K, S, D).
        values: (B, K, S, D).
        mask: (B or 1, 1, T, S) float32, added to the scores, or None.
        scale: Factor of the scores.

    Returns:
        Like q; None if the kernel does not support the shapes.
    """
    B, T, H, D = q.shape
    if T > 1:
        if B > 1 or T > _FEW_QUERIES or mask is None or mask.shape[1] > 1:
            return None
        y = attend(
            q.transpose(0, 1), keys.expand(T, -1, -1, -1), values.expand(T, -1, -1, -1), mask.transpose(0, 2), scale
        )
        return None if y is None else y.transpose(0, 1)
    steps, k, v = q.stride(), keys.stride(), values.stride()
    if not _usable(q) or D % 16 or steps[2:] != (D, 1) or k[3] != 1 or v[3] != 1 or keys.dtype != q.dtype:
        return None
    if mask is not None and (mask.shape[1:3] != (1, 1) or mask.dtype != q.dtype or mask.stride(3) != 1):
        return None
    y = torch.empty(q.shape, dtype=torch.float32)
    place, row = (None, 0) if mask is None else (mask.data_ptr(), mask.stride(0) if len(mask) > 1 else 0)
    failed = library().attend(
        *(q.data_ptr(), steps[0]),
        *(keys.data_ptr(), k[0], k[1], k[2]),
        *(values.data_ptr(), v[0], v[1], v[2]),
        *(place, row, y.data_ptr()),
        *(B, H, keys.shape[1], keys.shape[2], D, scale, torch.get_num_threads()),
    )
    if failed:
        raise MemoryError
    return y


def _usable(x: Tensor) -> bool:
    return x.dtype == torch.float32 and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def replace_small_operations(model: nn.Module) -> bool:
    """Let a frozen float32 model on a CPU use the kernels above for norms, gates, rotations and single queries.

    Returns:
        Whether there are such kernels on this machine.
    """
    if library() is None:
        return False
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is RMSNorm or type(child) is OffsetRMSNorm:  # not a subclass with another formula
                gain = child.weight.data.float()
                gain = 1 + gain if isinstance(child, OffsetRMSNorm) else gain
                setattr(module, name, NativeRMSNorm(gain, child.eps or 0.0))
        if isinstance(module, MLP) and module.activation is mlp.swiglu:
            module.activation = swiglu
        if isinstance(module, SelfAttention) and module.scoring.softcap is None and module.sinks is None:
            module.rotate, module.attend_one, module.store = rotate, attend, store
    return True
