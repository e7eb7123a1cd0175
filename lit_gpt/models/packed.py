"""Packed weights for inference on a CPU, in the layout that is fastest on this machine.

Decoding one token multiplies every matrix by one vector, so its time is that of reading the matrices: half the bytes
are twice the speed. Once after loading, `prepare_for_inference` replaces the matrices of a frozen model on a CPU by a
packed form and frees the originals. The rest of the model does not change: a packed layer has the interface of the
layer that it replaces.

| kind | bytes per weight | kernel |
|---|---|---|
| `float32` | 4 | BLAS on a transposed matrix, oneDNN's packed layout, or a compiled kernel (`native`) |
| `bfloat16` | 2 | oneDNN's packed layout, or a compiled kernel |
| `int8` | 1 | torch's int8 product, one scale per output; or a compiled kernel, one scale per 32 inputs |
| `int4` | 0.6 | torch's int4 product or a compiled one, scale and offset per 32 inputs; LM head in int8 or bfloat16 |

Of several kernels, the one that is fastest on this machine is used. Where kernels can be compiled, they also replace
norms, gated activations, rotations and the attention of single queries.

The residual stream, norms, attention and its cache are float32 in all of them: on CPUs, attention in bfloat16 takes
four to eight times as long (measured, torch 2.13). Only the input and output of a product have the dtype
of its kernel. Every kernel is tried on a small matrix before it is used, since not every machine and torch version has
all of them.

Shapes: O outputs and I inputs of a layer, G groups of inputs, N tokens.
"""

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.errors import UserError
from lit_gpt.models.fused import FusedLinears
from lit_gpt.models.gpt import GPT
from lit_gpt.models.head import HeadFn
from lit_gpt.models.kernel_choice import best_time, choose, remembered
from lit_gpt.models.linear import is_plain_linear, onednn
from lit_gpt.models.native import NativeMatrix, library, quantized_groups, replace_small_operations

Weights = Literal["auto", "plain", "float32", "bfloat16", "int8", "int4"]
"""`auto`: the model's own precision; `plain`: leave the model as it is."""
GROUP_SIZE = 32
_INT4_GROUPS = (32, 64, 128, 256)
"""Group sizes of torch's int4 kernel."""
_INT4_OUTPUTS = 16
"""The number of outputs must be a multiple of this for the int4 kernel."""
_SMALL = 1 << 14
"""Products with fewer weights take as long as their call: the first kernel is taken unmeasured."""
_FEW_TOKENS = 32
"""With more tokens than this, int8 and int4 weights are dequantized for an ordinary matrix product: their kernels are
made for few tokens (measured: equally fast at about 40)."""


class PackedWeight:
    """A matrix (O, I) that supports only multiplication: `F.linear(x, packed, bias)` and `packed(x)`."""

    kind = ""
    """Dtype and kernel, for messages."""

    shape: tuple[int, int]
    """(O, I)."""

    def __init__(self, weight: Tensor) -> None:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ, (..., I) → (..., O), in float32 or the dtype of the kernel."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
        """Implement `F.linear` with a packed weight, which the functions of the LM head call."""
        x, weight, *rest = args
        bias = rest[0] if rest else (kwargs or {}).get("bias")
        assert func is F.linear, f"a packed weight has no {func}"
        y = weight(x).to(x.dtype)
        return y if bias is None else y + bias


class BlasWeight(PackedWeight):
    """Float32 weight for BLAS, stored column by column if O >= I, which BLAS reads faster."""

    kind = "float32, BLAS"

    def __init__(self, weight: Tensor) -> None:
        weight = weight.float()
        self.shape = (weight.shape[0], weight.shape[1])
        self.weight = weight.t().contiguous().t() if weight.shape[0] >= weight.shape[1] else weight.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply in float32."""
        return F.linear(x.float(), self.weight)


class OneDNNWeight(PackedWeight):
    """Float32 weight in the blocked layout of oneDNN."""

    dtype = torch.float32
    kind = "float32, oneDNN"

    def __init__(self, weight: Tensor) -> None:
        self.shape = (weight.shape[0], weight.shape[1])
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(self.dtype).contiguous(), 1)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply in the dtype of the weight, accumulating in float32."""
        return onednn(x.to(self.dtype), self.packed)


class BFloat16Weight(OneDNNWeight):
    """Bfloat16 weight in the blocked layout of oneDNN."""

    dtype = torch.bfloat16
    kind = "bfloat16, oneDNN"


class Int8Weight(PackedWeight):
    """Int8 weight: integers from -127 to 127, with one scale per output.

    Args:
        weight: (O, I) float weight to quantize, or (O, I) int8 integers.
        scale: (O,) float scale of the integers; None = `weight` is a float weight.
    """

    kind = "int8"

    def __init__(self, weight: Tensor, scale: Tensor | None = None) -> None:
        if scale is None:
            wide = weight.float()
            scale = wide.abs().amax(dim=1).clamp_(min=1e-12) / 127
            weight = torch.round(wide / scale[:, None]).to(torch.int8)
        self.values, self.scale = weight.contiguous(), scale.float().reshape(-1)
        self.shape = (weight.shape[0], weight.shape[1])
        self.compute = integer_dtype("int8")
        self.rounded_scale = torch.ones_like(self.scale).to(self.compute)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply a few tokens by the integers, or many by the matrix."""
        flat = x.reshape(-1, x.shape[-1])
        if flat.shape[0] > _FEW_TOKENS:
            y = F.linear(flat.to(self.compute), self.values.to(self.compute))
        else:
            y = torch._weight_int8pack_mm(flat.to(self.compute), self.values, self.rounded_scale)
        # The scale comes last, in float32: as the kernel's argument it would be rounded to the type of x.
        return (y * self.scale).view(*x.shape[:-1], -1)


class Int4Weight(PackedWeight):
    """Int4 weight: integers q from 0 to 15; each group of inputs has a scale s and an offset z: w = (q - 8) s + z.

    Args:
        weight: (O, I) float weight to quantize, or (O, I) integers from -8 to 7.
        scale: (O, G) scale of the integers, whose offset is 0; None = `weight` is a float weight, whose groups are
            quantized to 16 equidistant values from their minimum to their maximum.
        group_size: Number of inputs that share a scale and an offset.
    """

    kind = "int4"

    def __init__(self, weight: Tensor, scale: Tensor | None = None, group_size: int = GROUP_SIZE) -> None:
        if scale is None:
            groups = weight.float().unflatten(1, (-1, group_size))  # (O, G, group)
            low, high = groups.aminmax(dim=2)
            scale = ((high - low) / 15).clamp_(min=1e-12)
            values = torch.round((groups - low[..., None]) / scale[..., None]).flatten(1)
            zero = low + 8 * scale
        else:
            values, zero = weight + 8, torch.zeros_like(scale, dtype=torch.float32)
        self._store(values, scale, zero, group_size)

    def _store(self, values: Tensor, scale: Tensor, zero: Tensor, group_size: int = GROUP_SIZE) -> None:
        """Bring integers (O, I) from 0 to 15, with scales and offsets (O, G), into the kernel's layout."""
        self.compute, self.group_size = integer_dtype("int4"), group_size
        self.shape = (values.shape[0], values.shape[1])
        integers = values.to(torch.int32).contiguous()
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers, 1)
        both = torch.stack((scale.float(), zero), dim=-1).transpose(0, 1)  # (G, O, 2)
        self.scales_and_zeros = both.to(self.compute).contiguous()
        # The kernel's layout cannot be read back, so the same integers are also kept two per byte, to dequantize.
        pairs = integers.to(torch.uint8)
        self.pairs = pairs[:, 0::2] | (pairs[:, 1::2] << 4)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply a few tokens by the integers, or many by the matrix."""
        flat = x.reshape(-1, x.shape[-1]).to(self.compute)
        if flat.shape[0] > _FEW_TOKENS:
            y = F.linear(flat, self.dequantized())
        else:
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.packed, self.group_size, self.scales_and_zeros)
        return y.view(*x.shape[:-1], -1)

    def dequantized(self) -> Tensor:
        """Return the dequantized matrix (O, I)."""
        values = torch.stack((self.pairs & 15, self.pairs >> 4), dim=2).view(self.shape[0], -1, self.group_size)
        scale, zero = self.scales_and_zeros.transpose(0, 1).unsqueeze(2).unbind(-1)  # (O, G, 1)
        return (values.to(self.compute) - 8).mul_(scale).add_(zero).flatten(1)


class NativeFloatWeight(PackedWeight):
    """Float32 weight for the compiled kernel (`lit_gpt.models.native`)."""

    bits = 32
    dtype = torch.float32
    kind = "float32, compiled"

    def __init__(self, weight: Tensor) -> None:
        if library() is None:
            raise NotImplementedError
        self.shape = (weight.shape[0], weight.shape[1])
        self.matrix = NativeMatrix(weight.to(self.dtype).contiguous(), bits=self.bits)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply in the dtype of the weight, accumulating in float32."""
        return self.matrix(x)


class NativeBFloat16Weight(NativeFloatWeight):
    """Bfloat16 weight for the compiled kernel."""

    bits = 16
    dtype = torch.bfloat16
    kind = "bfloat16, compiled"


class NativeInt8Weight(PackedWeight):
    """Weight of 8 bits with a scale and a minimum per 32 inputs, for the compiled kernel (`lit_gpt.models.native`)."""

    bits = 8
    kind = "int8, compiled"

    def __init__(self, weight: Tensor) -> None:
        self._keep(*quantized_groups(weight, self.bits))

    def _keep(self, codes: Tensor, scale: Tensor, minimum: Tensor) -> None:
        if library() is None:
            raise NotImplementedError
        self.matrix, self.shape = NativeMatrix(codes, scale, minimum, self.bits), (codes.shape[0], codes.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply in integers."""
        return self.matrix(x)


class NativeInt4Weight(NativeInt8Weight):
    """Weight of 4 bits, likewise.

    Args:
        weight: (O, I) float weight to quantize, or (O, I) integers from -8 to 7.
        scale: (O, G) scale of the integers; None = `weight` is a float weight.
    """

    bits = 4
    kind = "int4, compiled"

    def __init__(self, weight: Tensor, scale: Tensor | None = None) -> None:
        if scale is None:
            super().__init__(weight)
            return
        scale = scale.bfloat16().float().repeat_interleave(weight.shape[1] // GROUP_SIZE // scale.shape[1], dim=1)
        self._keep((weight + 8).to(torch.uint8), scale, -8 * scale)


_GROUPED = (Int4Weight, NativeInt8Weight, NativeFloatWeight)
"""Kernels for multiples of 32 inputs and 16 outputs."""


class PackedLinear(nn.Module):
    """Replacement of an `nn.Linear` by a packed weight, which it may share with other layers of the same input.

    Args:
        weight: Packed weight, of one layer or of several concatenated along the outputs.
        bias: Float32 bias of this layer, or None.
        start: Index of the first output of this layer in the packed weight.
        size: Number of outputs of this layer; None = all outputs of the packed weight.
    """

    def __init__(self, weight: PackedWeight, bias: Tensor | None, start: int = 0, size: int | None = None) -> None:
        super().__init__()
        self.packed, self.bias, self.start, self.size = weight, bias, start, size

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: (..., I) → (..., O)."""
        y = self.packed(x)
        if self.size is not None:
            y = y.narrow(-1, self.start, self.size)
        return y if self.bias is None else y + self.bias


class PackedHead(PackedLinear):
    """The LM head."""

    def forward(self, hidden: Tensor, head_fn: HeadFn | None = None) -> Any:
        """Return the logits (B, T, V) of hidden states (B, T, C), or the result of `head_fn`."""
        return F.linear(hidden, self.packed, self.bias) if head_fn is None else head_fn(hidden, self.packed, self.bias)  # type: ignore


class WideEmbedding(nn.Embedding):
    """An embedding stored in bfloat16 that returns float32."""

    def forward(self, input: Tensor) -> Tensor:
        """Look up token ids: (...) int64 → (..., C) float32."""
        return super().forward(input).float()


# ------------------------------------------------------------------ choosing the fastest kernel on this machine

_KINDS: dict[str, tuple[type[PackedWeight], ...]] = {
    "float32": (BlasWeight, OneDNNWeight, NativeFloatWeight),
    "bfloat16": (BFloat16Weight, NativeBFloat16Weight),
    "int8": (Int8Weight, NativeInt8Weight),
    "int4": (Int4Weight, NativeInt4Weight),
}
_HEADS: dict[str, tuple[type[PackedWeight], ...]] = {"int4": (Int8Weight, BFloat16Weight, NativeInt8Weight)}
"""Kernels of the LM head where they differ from those of the layers. Most of the loss of int4 would come from the head:
SmolLM2-135M loses 0.021 bits per byte with an int4 head and 0.0007 with an int8 head. That head, 49,152 x 576, takes
5.2 ms a token with torch's int8 product, 5.4 in bfloat16, 1.5 compiled (AVX-512, one thread)."""


@cache
def is_available(make: type[PackedWeight]) -> bool:
    """Return whether a kernel exists on this machine and computes correct results."""
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        weight, x = (torch.randn(n, 64, generator=generator, dtype=torch.float32) for n in (32, 3))
        try:
            y = make(weight)(x)
        except (RuntimeError, AttributeError, NotImplementedError):  # absent from this build, or for this processor
            return False
        expected = x @ weight.t()
        # The relative error of int4 on random numbers is about a tenth.
        return bool((y - expected).norm() < 0.15 * expected.norm())


@remembered
def fastest(makes: tuple[type[PackedWeight], ...], outputs: int, inputs: int, tokens: int = 1) -> type[PackedWeight]:
    """Return the fastest available kernel for this number of tokens and matrix size (see `kernel_choice`)."""
    if inputs % GROUP_SIZE or outputs % _INT4_OUTPUTS:
        makes = tuple(make for make in makes if not issubclass(make, _GROUPED)) or (Int8Weight,)
    usable = [make for make in makes if is_available(make)]  # type: ignore[arg-type]

    def measure(make: type[PackedWeight]) -> float:
        count = min(128, max(1, (1 << 23) // (outputs * inputs)))  # more than the caches hold
        weight, x = (torch.ones(n, inputs, dtype=torch.float32) for n in (outputs, tokens))
        return best_time([make(weight) for _ in range(count)], x)

    if outputs * inputs < _SMALL and usable:
        return usable[0]
    by_name = {make.kind: make for make in usable} or {BlasWeight.kind: BlasWeight}
    return choose(f"matrix {outputs} x {inputs}, {tokens} tokens", by_name, measure)


@remembered
def integer_dtype(kind: str) -> torch.dtype:
    """Return the dtype of activations with which the integer kernels are fastest: bfloat16 if the CPU supports it.

    With the other dtype (float32 where bfloat16 is native, bfloat16 elsewhere) they take 5 to 50 times as long.
    """
    size = 512
    integers = torch.ones(size, size, dtype=torch.int8)

    def measure(dtype: torch.dtype) -> float:
        product: Callable[..., Tensor] = torch._weight_int8pack_mm
        arguments: tuple[Any, ...] = (integers, torch.ones(size, dtype=dtype))
        if kind == "int4":
            product = torch.ops.aten._weight_int4pack_mm_for_cpu
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers.int(), 1)
            arguments = (packed, GROUP_SIZE, torch.ones(size // GROUP_SIZE, size, 2, dtype=dtype))
        return best_time([lambda x: product(x, *arguments)], torch.ones(1, size, dtype=dtype))

    return choose(f"activations of {kind}", {"bfloat16": torch.bfloat16, "float32": torch.float32}, measure)


# ------------------------------------------------------------------ preparing a model


@torch.inference_mode(False)
@torch.no_grad()
def prepare_for_inference(model: GPT, weights: str = "auto", tokens: int = 1) -> str | None:
    """Replace the matrices of a model by packed ones, in place.

    Attention and MLP (modules with `fusable`) and the LM head are packed; layers with adapters, stacked experts, latent
    attention and mixers of other packages are not. Never call it on a model that is to be trained or saved, because the
    original weights are freed.

    Args:
        model: Frozen model in eval mode on a CPU; any other model is not changed.
        weights: Kind of weights; `auto` = the model's own precision, `plain` = no packing.
        tokens: Number of sequences that decode at the same time; the kernels are chosen for it.

    Returns:
        Description of the chosen kernels, for the user; None = the matrices were not changed.

    Raises:
        UserError: If the kind is unknown, or was requested explicitly and is not possible on this machine.
    """
    if weights not in get_args(Weights):
        raise UserError(f"weights is {weights!r}; it can be {', '.join(get_args(Weights))}")
    parameters = list(model.parameters())
    trained = model.training or any(parameter.requires_grad for parameter in parameters)
    if weights == "plain" or trained or any(parameter.device.type != "cpu" for parameter in parameters):
        if weights not in ("auto", "plain"):
            raise UserError(f"weights {weights} is only for inference on a CPU; leave it out")
        return None
    owners: list[Any] = [module for module in model.modules() if hasattr(module, "fusable")]
    packed = {id(p) for owner in owners for linear in owner.children() if _linear(linear) for p in linear.parameters()}
    packed |= {id(model.wte.weight), id(model.lm_head.weight)}
    dtype = model.wte.weight.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16) or not packed:
        return None
    if dtype != torch.float32 and any(p.dim() > 1 and id(p) not in packed for p in parameters):
        return None  # for example experts: float32 activations would meet half-precision weights
    del parameters  # so that each matrix is freed when it is replaced
    kind = _own_kind(owners, dtype) if weights == "auto" else weights
    makes = _KINDS[kind]
    if weights == "auto" and kind == "bfloat16":  # on a CPU without bfloat16 units, float32 is faster
        makes = (*makes, *_KINDS["float32"])
    if weights != "auto" and not any(is_available(make) for make in makes):  # type: ignore[arg-type]
        raise UserError(f"weights {weights} has no kernel on this machine with torch {torch.__version__}; leave it out")
    if weights == "auto" and makes == _KINDS["float32"] and not _gains(model, owners, makes, tokens):
        replace_small_operations(model)
        return None  # the engine uses BLAS's layout anyway
    used: dict[str, int] = {}
    for owner in owners:
        _pack_owner(owner, makes, tokens, used)
    if type(model.lm_head.weight.data) is Tensor:
        head = _pack([model.lm_head.weight], _HEADS.get(kind, makes), tokens)
        used[head.kind] = used.get(head.kind, 0) + 1
        bias = model.lm_head.bias
        model.lm_head = PackedHead(head, None if bias is None else bias.data.float())  # type: ignore[assignment]
        if dtype != torch.float32 or kind != "float32":
            _narrow_embedding(model)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and type(parameter.data) is Tensor and not isinstance(module, WideEmbedding):
                module._parameters[name] = nn.Parameter(parameter.data.float(), requires_grad=False)
    model.state_dtype = torch.float32
    compiled = ["compiled operations between products"] if replace_small_operations(model) else []
    _return_freed_memory()
    return "; ".join([f"{count} {name}" for name, count in used.items()] + compiled)


def _return_freed_memory() -> None:
    """Give the memory of the replaced matrices back to the system; glibc keeps it, since others lie in between."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _own_kind(owners: Sequence[Any], dtype: torch.dtype) -> str:
    """Return the kind of weights that matches the precision of the model's matrices."""
    for owner in owners:
        for child in owner.children():
            if _linear(child) and hasattr(child.weight.data, "qdata"):
                return "int4" if _is_int4(child.weight.data) else "int8"
    return "float32" if dtype == torch.float32 else "bfloat16"


def _is_int4(weight: Any) -> bool:
    return bool(getattr(weight, "target_dtype", torch.int8) == vars(torch)["int4"])


def _narrow_embedding(model: GPT) -> None:
    """Convert the embedding to bfloat16; it is only looked up, so this costs no speed."""
    rows, width = model.wte.weight.shape
    with torch.device("meta"):
        embedding = WideEmbedding(rows, width)
    embedding.weight = nn.Parameter(model.wte.weight.data.to(torch.bfloat16), requires_grad=False)
    model.wte = embedding


def _linear(module: nn.Module) -> bool:
    return is_plain_linear(module)


def _gains(model: GPT, owners: Sequence[Any], makes: tuple[type[PackedWeight], ...], tokens: int) -> bool:
    """Return whether any float32 matrix of a model is multiplied faster than by BLAS."""
    groups: list[list[nn.Linear]] = [[model.lm_head], *(group for owner in owners for group in _groups(owner))]
    shapes = {(sum(linear.out_features for linear in group), group[0].in_features) for group in groups}
    return any(fastest(makes, *shape, tokens) is not BlasWeight for shape in shapes)


def _groups(owner: Any) -> list[list[nn.Linear]]:
    """Return the linear layers of an attention or MLP module; those that share an input together."""
    linears = [child for child in owner.children() if _linear(child)]
    shared = [linear for linear in owner.fusable() if any(linear is one for one in linears)]
    groups = [shared] if len(shared) == len(owner.fusable()) else [[linear] for linear in shared]
    return groups + [[linear] for linear in linears if not any(linear is one for one in shared)]


def _pack_owner(owner: Any, makes: tuple[type[PackedWeight], ...], tokens: int, used: dict[str, int]) -> None:
    """Pack the linear layers of an attention or MLP module; those that share an input become one product."""
    names = {id(child): name for name, child in owner.named_children()}
    for group in _groups(owner):
        weight = _pack([linear.weight for linear in group], makes, tokens)
        if weight is None:
            continue
        used[weight.kind] = used.get(weight.kind, 0) + 1
        biases = [None if linear.bias is None else linear.bias.data.float() for linear in group]
        start = 0
        for linear, bias in zip(group, biases, strict=True):
            size = None if len(group) == 1 else linear.out_features
            setattr(owner, names[id(linear)], PackedLinear(weight, bias, start, size))
            start += linear.out_features
        if len(group) == len(owner.fusable()) > 1:
            bias = None if biases[0] is None else torch.cat([b for b in biases if b is not None])
            # Attention continues in the dtype of its states.
            dtype = torch.float32 if hasattr(owner, "new_state") else None
            owner.fused = FusedLinears.of_packed([linear.out_features for linear in group], weight, bias, dtype)


def _pack(weights: Sequence[Any], makes: tuple[type[PackedWeight], ...], tokens: int) -> Any:
    """Return one packed weight for matrices that share an input; None if no kernel supports their quantization.

    A torchao tensor (`qdata`, `scale`) keeps its integers.
    """
    data = [weight.data for weight in weights]
    if all(type(tensor) is Tensor for tensor in data):
        matrix = torch.cat(data) if len(data) > 1 else data[0]
        return fastest(makes, *matrix.shape, tokens)(matrix)
    if not all(hasattr(tensor, "qdata") and hasattr(tensor, "scale") for tensor in data):
        return None
    values, scale = torch.cat([t.qdata for t in data]), torch.cat([t.scale for t in data]).float()
    if hasattr(data[0], "act_quant_kwargs") and data[0].act_quant_kwargs is not None:
        return None  # activations are rounded as well
    outputs, inputs = values.shape
    if _is_int4(data[0]):
        group = inputs // scale.shape[1]
        if group not in _INT4_GROUPS or outputs % _INT4_OUTPUTS:
            return None
        make = fastest(_KINDS["int4"], outputs, inputs, tokens)
        if make is NativeInt4Weight:
            return NativeInt4Weight(values, scale)
        return Int4Weight(values, scale, group) if is_available(Int4Weight) else None
    return Int8Weight(values, scale) if scale.numel() == outputs and is_available(Int8Weight) else None
