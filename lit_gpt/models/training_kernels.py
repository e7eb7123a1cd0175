"""Causal attention and GELU of training on a CPU, compiled on this machine (`training.c`).

On CPUs, torch's attention runs at a third of the speed of matrix products in float32 and at a tenth in bfloat16, and
its tanh-GELU computes one element at a time: 83 and 24 ms of a layer of 16 x 256 tokens, width 384, forward and
backward; the kernels here take half. Where a compiler is missing, or torch is faster (measured once and kept, as in
`linear`), torch's are used. In bfloat16 too, they compute in float32.

B batch, T time, H heads, K key/value heads, D head size.
"""

import ctypes
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_gpt.models.kernel_choice import best_time, choose, compile_kernels, remembered
from lit_gpt.models.linear import QUESTION

_FEW = 1 << 14
"""Fewer elements take as long as the call."""


@cache
def _library() -> Any:
    kernels = compile_kernels(Path(__file__).with_name("training.c"))
    if kernels is not None:
        address: Any = ctypes.c_void_p
        number: Any = ctypes.c_int64
        sizes = [*[number] * 5, ctypes.c_float, ctypes.c_int]
        kernels.attention.argtypes = [*[address] * 6, *sizes]
        kernels.attention_backward.argtypes = [*[address] * 10, *sizes]
        kernels.gelu_tanh.argtypes = [address, address, address, number, ctypes.c_int, ctypes.c_int]
        kernels.gelu_tanh.restype = None
    return kernels


def _trains(x: Tensor, *others: Tensor) -> bool:
    """Return whether gradients of plain tensors of one dtype on a CPU are recorded."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.numel() >= _FEW
        and all(type(t) is Tensor and t.is_cpu and t.dtype == x.dtype for t in (x, *others))
        and x.dtype in (torch.float32, torch.bfloat16)
        and any(t.requires_grad for t in (x, *others))
        and not torch._C._are_functorch_transforms_active()
    )


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GELU's tanh approximation, element by element."""
    if _trains(x) and x.is_contiguous() and _gelu_is_faster(x.dtype):
        y: Tensor = _GELU.apply(x)
        return y
    return F.gelu(x, approximate="tanh")


@remembered
def _gelu_is_faster(dtype: torch.dtype) -> bool:
    options: dict[str, Callable[[Tensor], Tensor]] = {"torch": lambda x: F.gelu(x, approximate="tanh")}
    if _library() is not None:
        options["compiled"] = _gelu
    return _chosen(f"gelu_tanh, {dtype}", options, torch.ones(1 << 18, dtype=dtype))


def _chosen(name: str, options: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> bool:
    first = next(iter(options.values()))
    chosen = choose(f"{QUESTION} {name}", options, lambda f: best_time([f], x, 3), passes=3, must_keep=True)
    return chosen is not first


def _gelu(x: Tensor, grad: Tensor | None = None) -> Tensor:
    y = torch.empty_like(x)
    address = None if grad is None else grad.data_ptr()
    is_half = x.dtype == torch.bfloat16
    _library().gelu_tanh(x.data_ptr(), address, y.data_ptr(), x.numel(), is_half, torch.get_num_threads())
    return y


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _gelu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")
        return _gelu(x, grad.contiguous())


def causal_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor | None:
    """Compute causal attention of whole rows where gradients are recorded.

    Args:
        q: (B, H, T, D).
        k: (B, K, T, D).
        v: (B, K, T, D).
        mask: (B or 1, 1, T, T) bool: each query attends to keys from some first one to its own; None: from the row's.
        scale: Factor of the scores.

    Returns:
        (B, H, T, D); None if the kernel does not support this or is slower here.
    """
    D = q.shape[-1]
    if (
        not _trains(q, k, v)
        or D % 16
        or v.shape != k.shape
        or k.shape[2] != q.shape[2]
        or any(t.stride(-1) != 1 for t in (q, k, v))
        or not _attention_is_faster(min(512, 1 << (q.shape[2] - 1).bit_length()), D, q.dtype)
    ):
        return None
    starts = None if mask is None else _first_keys(mask, q.shape[0])
    if mask is not None and starts is None:
        return None
    y: Tensor = _Attention.apply(q, k, v, starts, scale)
    return y


def _first_keys(mask: Tensor, rows: int) -> Tensor | None:
    """Return each query's first key, (B, T) int64; None if some query does not attend to all keys up to its own."""
    global _last_mask
    if mask.dtype != torch.bool or mask.shape[1] != 1:
        return None
    if _last_mask is not None and _last_mask[0]() is mask:
        return _last_mask[1]
    sees = mask[:, 0]
    T = sees.shape[-1]
    first = sees.to(torch.uint8).argmax(-1)
    own = torch.arange(T)
    expected = (own >= first[..., None]) & (own <= own[:, None])
    starts = first.expand(rows, T).contiguous() if torch.equal(expected, sees) else None
    _last_mask = weakref.ref(mask), starts  # all layers of a kind share it
    return starts


_last_mask: tuple[weakref.ref[Tensor], Tensor | None] | None = None


@remembered
def _attention_is_faster(tokens: int, head_size: int, dtype: torch.dtype) -> bool:
    """Measure four heads forward and backward; the outer loops of both kernels are over rows and heads."""
    x = torch.ones(1, tokens, 4, head_size, dtype=dtype).transpose(1, 2)

    def both(attend: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                y = attend(leaf, leaf, leaf)
                return torch.autograd.grad(y, leaf, x)[0]

        return run

    scale = head_size**-0.5
    options = {"torch": both(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale))}
    if _library() is not None:
        options["compiled"] = both(lambda q, k, v: _Attention.apply(q, k, v, None, scale))
    return _chosen(f"attention, {tokens} x {head_size}, {dtype}", options, x)


class _View(ctypes.Structure):
    """`View` in training.c."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("row", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("half", ctypes.c_int64),
    )


def _view(x: Tensor) -> Any:
    return ctypes.byref(_View(x.data_ptr(), *x.stride()[:3], x.dtype == torch.bfloat16))


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, scale: float) -> Tensor:
        B, H, T, D = q.shape
        ctx.sizes = B, H, k.shape[1], T, D, scale, torch.get_num_threads()
        y, logs = torch.empty(B, T, H, D, dtype=q.dtype).transpose(1, 2), torch.empty(B, H, T, dtype=torch.float32)
        outputs = y.data_ptr(), logs.data_ptr()
        if _library().attention(_view(q), _view(k), _view(v), _address(starts), *outputs, *ctx.sizes):
            raise MemoryError
        ctx.save_for_backward(q, k, v, starts, y, logs)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, starts, y, logs = ctx.saved_tensors
        B, H, K, T, D = ctx.sizes[:5]
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        dq, dk, dv = (torch.empty(B, T, heads, D, dtype=q.dtype) for heads in (H, K, K))
        saved = _address(starts), _view(y), logs.data_ptr(), _view(grad)
        gradients = (x.data_ptr() for x in (dq, dk, dv))
        if _library().attention_backward(_view(q), _view(k), _view(v), *saved, *gradients, *ctx.sizes):
            raise MemoryError
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None, None
