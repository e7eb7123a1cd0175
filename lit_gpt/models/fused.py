"""Weight matrices laid out for decoding: the same values and shapes in a different memory order.

Decoding one token multiplies every matrix by one vector, which takes as long as reading the matrix. On a CPU, BLAS
reads a matrix that is wider than high much faster by columns (it adds one column at a time, without sums across
lanes), and one large product is faster than three small ones. So weights that are higher than wide are stored
transposed, and projections of the same input (q, k, v; gate, up) become views of one matrix. Parameters keep their
names, shapes and values; in-place changes to a parameter also change the shared matrix.

O outputs, I inputs of a linear layer.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.models.head import LMHead
from lit_gpt.models.linear import is_plain_linear


class FusedLinears:
    """Several linear layers of the same input as one product with a matrix that their weights are views of.

    Args:
        linears: Plain `nn.Linear`s on one device, of one dtype, all with or all without biases; their weights become
            views.
        transposed: Store (I, O) instead of (O, I).
    """

    packed: Callable[[Tensor], Tensor] | None = None
    """What multiplies by the matrix, where it is in another form than a tensor."""
    dtype: torch.dtype | None = None

    def __init__(self, linears: Sequence[nn.Linear], transposed: bool) -> None:
        self.sizes = [linear.out_features for linear in linears]
        weight = torch.cat([linear.weight.detach() for linear in linears])
        self.weight = weight.t().contiguous().t() if transposed else weight
        self.bias: Tensor | None = None
        if linears[0].bias is not None:
            self.bias = torch.cat([linear.bias.detach() for linear in linears])
        start = 0
        for linear, size in zip(linears, self.sizes, strict=True):
            linear.weight.data = self.weight[start : start + size]
            if self.bias is not None:
                linear.bias.data = self.bias[start : start + size]
            start += size
        self._pointers = [linear.weight.data_ptr() for linear in linears]

    @classmethod
    def of_packed(
        cls,
        sizes: list[int],
        product: Callable[[Tensor], Tensor],
        bias: Tensor | None,
        dtype: torch.dtype | None = None,
    ) -> "FusedLinears":
        """Create fused layers on a packed matrix (`lit_gpt.models.packed`), of which no parameter is a view.

        Args:
            sizes: Number of outputs of each layer.
            product: Function that multiplies by the packed matrix of all layers.
            bias: Concatenated bias of all layers, or None.
            dtype: Dtype of the outputs; None = that of the product.
        """
        fused = cls.__new__(cls)
        fused.sizes, fused.packed, fused.bias, fused.dtype = sizes, product, bias, dtype
        return fused

    def serves(self, linears: Sequence[nn.Module]) -> bool:
        """Return whether these are still the fused layers: none replaced, moved or assigned other weights.

        An engine instead checks the whole model once per iteration (`layout_of`).
        """
        if self.packed is not None:
            return True
        if torch.compiler.is_compiling():
            return False  # torch.compile cannot trace data pointers
        if torch.is_grad_enabled():
            return False  # the shared matrix is not a parameter: the layers would get no gradient
        return all(
            is_plain_linear(linear) and cast(Tensor, linear.weight).data_ptr() == pointer
            for linear, pointer in zip(linears, self._pointers, strict=True)
        )

    def product(self, x: Tensor) -> Tensor:
        """Return the concatenated outputs of the layers: (..., I) → (..., sum of outputs)."""
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        y = self.packed(x)
        y = y if self.dtype is None else y.to(self.dtype)
        return y if self.bias is None else y + self.bias

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the output of each layer, views of one tensor: (..., I) → (..., O) each."""
        return self.product(x).split_with_sizes(self.sizes, dim=-1)


@torch.inference_mode(False)  # also within a Trainer's `validate`: training afterwards needs normal tensors
@torch.no_grad()
def prepare_for_decoding(model: nn.Module) -> None:
    """Lay out a model's matrices for decoding, in place; its outputs change only by rounding.

    Modules with `fusable` (their linear layers that share an input) get `fused` if there are several such layers.
    Quantized, sharded and other special layers are left unchanged. Matrices that are trained (`requires_grad`) keep
    their memory order, though they may still become rows of a shared matrix: on a CPU, AdamW with `fused: true` walks
    through a parameter, its gradient and its moments by address, and DistributedDataParallel keeps gradients in the
    memory order that its parameters had when it was created. Both silently mix up values if those orders differ
    (torch 2.13).
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    done: set[int] = set()
    modules: list[Any] = list(model.modules())
    for module in modules:
        if not hasattr(module, "fusable") or (module.fused is not None and module.fused.packed is not None):
            continue
        linears = module.fusable()
        if not (len(linears) > 1 and all(map(_is_plain, linears)) and _are_alike(linears)):
            module.fused = None  # stale: from before an adapter was added or layers were quantized
            continue
        if module.fused is None or not module.fused.serves(linears):
            high = sum(linear.out_features for linear in linears) >= linears[0].in_features
            trained = any(linear.weight.requires_grad for linear in linears)
            module.fused = FusedLinears(linears, transposed=on_cpu and high and not trained)
        done.update(id(linear.weight) for linear in linears)
    for module in modules:
        if on_cpu and _is_plain(module) and id(module.weight) not in done:
            done.add(id(module.weight))
            weight = module.weight
            if weight.shape[0] >= weight.shape[1] and weight.is_contiguous() and not weight.requires_grad:
                weight.data = weight.t().contiguous().t()


def layout_of(model: Any) -> tuple[Any, ...]:
    """Return a fingerprint that changes when a model's weights are moved or replaced: types and addresses of layers.

    It covers linear layers of the last block that has any at its top level, which is almost always the last block.

    Args:
        model: A `GPT`.
    """
    found: list[Any] = [model.training]
    for layer in range(len(model.blocks) - 1, -1, -1):
        block = model.blocks[layer]
        # Read the modules' dicts directly: this runs before every forward.
        for module in (*block.attn._modules.values(), *block.mlp._modules.values()):
            if isinstance(module, nn.Linear):
                weight = module._parameters["weight"]
                found += (type(module), weight.data_ptr() if type(weight) is nn.Parameter else id(weight))
            elif "packed" in module.__dict__:  # `lit_gpt.models.packed`
                found.append(id(module.__dict__["packed"]))
        if len(found) > 1:
            break  # a block without such layers (for example, a third-party mixer with experts) is skipped
    return tuple(found)


def _is_plain(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    known = is_plain_linear(module) or type(module) is LMHead
    return known and type(weight) is nn.Parameter and type(weight.data) is Tensor and not weight.is_meta


def _are_alike(linears: Sequence[nn.Linear]) -> bool:
    kinds = {(x.weight.device, x.weight.dtype, x.bias is None, x.in_features) for x in linears}
    return len(kinds) == 1
