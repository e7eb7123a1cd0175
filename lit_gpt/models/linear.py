"""Linear layers whose float32 products run, in training on a CPU, in the library that is faster on this machine.

Torch computes float32 products with its BLAS (MKL on x86). On processors of AMD, oneDNN is faster by a seventh, forward
and for the gradient of the input, and as fast for that of the weight (4,096 x 384 x 1,536: 105 against 91 GFLOP/s). So
each of the three products is measured once per size and machine, and the choice is kept (`kernel_choice`): a resumed
run computes with the same kernels. Where choices cannot be kept, and in everything but plain float32 training on a CPU
(half precision, autocast, torch.compile, sharded or quantized weights, small layers), torch's own function is used.

N rows (tokens), I inputs, O outputs of a layer.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.kernel_choice import best_time, choose, remembered, used_kernels

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(a (N, I), b (O, I), bias (O,) or None) → a bᵀ + bias (N, O), as `F.linear`, without gradients."""

QUESTION = "training:"
_LARGE = 1 << 24
"""Products of fewer multiplications, N I O, take torch's function, which has less overhead than is gained."""
_MEASURED_ROWS = 1024
"""With more rows than this, kernels compare as they do with this many."""


class Linear(nn.Linear):
    """`nn.Linear` with the faster products."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: (..., I) → (..., O)."""
        return linear(x, self.weight, self.bias)


def is_plain_linear(module: Any) -> bool:
    """Return whether a module is a linear layer as the models here have them, not one that an adapter replaced."""
    return type(module) is Linear or type(module) is nn.Linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b, (..., I) → (..., O), with the products of `Products` where gradients are recorded.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,) or None.
    """
    is_tensor = isinstance(weight, Tensor)  # not packed for decoding
    if torch.is_grad_enabled() and is_tensor and (x.requires_grad or weight.requires_grad):
        products = products_of(x, weight)
        if products is not None:
            y: Tensor = _Linear.apply(x, weight, bias, products)
            return y
    return F.linear(x, weight, bias)


class Products:
    """The three products of a linear layer: y = x Wᵀ, dx = g W, dW = gᵀ x.

    Args:
        rows: N.
        outputs: O.
        inputs: I.
    """

    def __init__(self, rows: int, outputs: int, inputs: int) -> None:
        x, weight = torch.ones(rows, inputs, dtype=torch.float32), torch.ones(outputs, inputs, dtype=torch.float32)
        grad = torch.ones(rows, outputs, dtype=torch.float32)
        self.output = _fastest("y", x, weight)
        self.grad_input = _fastest("dx", grad, weight.t())
        self.grad_weight = _fastest("dW", grad.t(), x.t())


def products_of(x: Tensor, weight: Tensor) -> Products | None:
    """Return the products to use for x (..., I) and weight (O, I); None: torch's own."""
    if (
        torch.compiler.is_compiling()
        or x.numel() * weight.shape[0] < _LARGE
        or not x.dtype == weight.dtype == torch.float32
        or type(x) is not Tensor
        or type(weight) not in (Tensor, nn.Parameter)
        or not (x.is_cpu and weight.is_cpu)
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
    ):
        return None
    outputs, inputs = weight.shape
    return _products(min(_MEASURED_ROWS, 1 << int(math.log2(x.numel() // inputs))), outputs, inputs)


@remembered
def _products(rows: int, outputs: int, inputs: int) -> Products | None:
    products = Products(rows, outputs, inputs)
    is_torch = products.output is products.grad_input is products.grad_weight is F.linear
    return None if is_torch else products


def chosen_products() -> str | None:
    """Return for the user which kernels train; None if nothing was large enough to choose."""
    used = used_kernels(QUESTION)
    return None if used is None else f"kernels of training: {used}"


def onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `F.linear` in oneDNN."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return y


@cache
def _has_onednn() -> bool:
    """Return whether this build of torch has the product and computes it right."""
    numbers = torch.arange(96, dtype=torch.float32)
    a, b = numbers.view(16, 6), numbers[:48].view(6, 8).t()
    try:
        return bool(torch.backends.mkldnn.enabled) and bool(torch.equal(onednn(a, b), F.linear(a, b)))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def _fastest(name: str, a: Tensor, b: Tensor) -> Product:
    options: dict[str, Product] = {"torch": F.linear}
    if _has_onednn():
        options["oneDNN"] = onednn
    question = f"{QUESTION} {name}, {a.shape[0]} x {a.shape[1]} x {b.shape[0]}"
    return choose(question, options, lambda f: best_time([lambda x: f(x, b, None)], a, 3), passes=3, must_keep=True)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, products: Products) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.products = products
        return products.output(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        products, torch_product = ctx.products, F.linear
        flat = grad.reshape(-1, grad.shape[-1])  # (N, O)
        # For a second derivative (`create_graph`), functions that autograd records.
        by_input = torch_product if torch.is_grad_enabled() else products.grad_input
        by_weight = torch_product if torch.is_grad_enabled() else products.grad_weight
        return (
            by_input(flat, weight.t(), None).view(x.shape) if needs_x else None,
            by_weight(flat.t(), x.reshape(-1, x.shape[-1]).t(), None) if needs_weight else None,
            flat.sum(0) if needs_bias else None,
            None,
        )
