"""Quantization schemes: methods, the layers they apply to, and conversion to and from torchao tensors.

| method | weights | activations | runs on |
|---|---|---|---|
| `int8` | 8 bits, one scale per output, or per group of inputs | not quantized | any device |
| `int4` | 4 bits, one scale per group of inputs | not quantized | any device |
| `int8_dynamic` | 8 bits, one scale per output | 8 bits, one scale per token, computed on the fly | CPU, CUDA |
| `fp8` | 8-bit floats (e4m3), one scale per output | the same, computed on the fly | CUDA 8.9+ (Ada, Hopper) |

All methods are symmetric: there are no zero points, and only scales are stored with the rounded values.

The linear layers of the blocks are quantized, except `kv_b_proj` of latent attention, whose matrix is also used
transposed. The embedding, head, norms, biases, routers and stacked expert matrices are not quantized.

Shapes: O outputs, I inputs, G groups of inputs.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lit_gpt.errors import UserError
from lit_gpt.extras import need
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.linear import is_plain_linear

Method = Literal["int8", "int4", "int8_dynamic", "fp8"]
INT4_GROUP = 32
"""Default group size of int4, as in llama.cpp's q4_0."""
_GROUPED = ("int8", "int4")
_AS_MATRIX = ("kv_b_proj",)
_TEMPLATE_ROWS = 16
FP8_CAPABILITY = (8, 9)
"""Lowest CUDA compute capability that multiplies 8-bit floats."""


@dataclass(frozen=True)
class Quantization:
    """A quantization method and its group size.

    Attributes:
        method: Method; see the table above.
        group_size: Number of a layer's inputs that share a scale; None: 32 for `int4`, otherwise all inputs.

    Raises:
        UserError: The method is unknown, or does not support the group size.
    """

    method: Method = "int8"
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UserError(f"method is {self.method!r}; it can be {', '.join(get_args(Method))}")
        if self.group_size is None and self.method == "int4":
            object.__setattr__(self, "group_size", INT4_GROUP)
        if self.group_size is None:
            return
        if self.method not in _GROUPED:
            raise UserError(
                f"group_size is {self.group_size}, but {self.method} has one scale per output; omit it, or choose "
                f"{' or '.join(_GROUPED)}"
            )
        if not isinstance(self.group_size, int) or self.group_size < 2:
            raise UserError(f"group_size is {self.group_size}; it must be at least 2, such as {INT4_GROUP}")
        if self.method == "int4" and self.group_size % 2:
            raise UserError(f"group_size is {self.group_size}; int4 packs two values per byte, so it must be even")

    def to_dict(self) -> dict[str, Any]:
        """Return the scheme as plain data; `Quantization(**values)` is the inverse."""
        return asdict(self)

    def __str__(self) -> str:
        return self.method if self.group_size is None else f"{self.method} in groups of {self.group_size}"

    def check_layer(self, name: str, in_features: int) -> None:
        """Check that the group size divides the inputs of a layer.

        Raises:
            UserError: It does not; the message names the layer and the group sizes that do.
        """
        if self.group_size is None or in_features % self.group_size == 0:
            return
        fitting = [size for size in (256, 128, 64, 32, 16, 8, 4, 2) if in_features % size == 0]
        remedy = f"choose one of {', '.join(map(str, fitting))}" if fitting else "choose int8 without groups"
        raise UserError(
            f"group_size {self.group_size} does not divide the {in_features} inputs of {name}; {remedy} (it must "
            "divide those of every layer)"
        )

    def check_device(self, device: torch.device) -> None:
        """Check that a device supports the method.

        Raises:
            UserError: It does not; the message names the devices that do.
        """
        if self.method == "fp8":
            capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
            if capability is None or capability < FP8_CAPABILITY:
                has = device.type if capability is None else f"CUDA capability {capability[0]}.{capability[1]}"
                raise UserError(
                    f"fp8 needs a CUDA device of capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or more (Ada, "
                    f"Hopper); this one is {has}; choose int8, which runs everywhere"
                )
        if self.method == "int8_dynamic" and device.type not in ("cpu", "cuda"):
            raise UserError(f"int8_dynamic runs on CPU and CUDA, and this device is {device.type}; choose int8")

    def torchao_config(self) -> Any:
        """Return torchao's configuration of the scheme.

        Raises:
            UserError: torchao is not installed.
        """
        ao = need_torchao()
        if self.method == "int8":
            granularity = ao.PerRow() if self.group_size is None else ao.PerGroup(self.group_size)
            return ao.Int8WeightOnlyConfig(granularity=granularity)
        if self.method == "int4":
            return ao.IntxWeightOnlyConfig(weight_dtype=_int4(), granularity=ao.PerGroup(self.group_size))
        if self.method == "int8_dynamic":
            return ao.Int8DynamicActivationInt8WeightConfig()
        return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())

    def fake_config(self) -> Any:
        """Return torchao's configuration for fake quantization in training; it rounds exactly as `torchao_config`."""
        ao = need_torchao()
        assert self.method in _GROUPED, "fake quantization supports weight-only methods"
        granularity = ao.PerAxis(0) if self.group_size is None else ao.PerGroup(self.group_size)
        bits = _int4() if self.method == "int4" else torch.int8
        return ao.IntxWeightOnlyConfig(weight_dtype=bits, granularity=granularity)


def need_torchao(module: str = "torchao.quantization") -> Any:
    """Import torchao.

    Raises:
        UserError: It is not installed.
    """
    noisy = [logging.getLogger(name) for name in ("torchao", "torchao.kernel.intmm", "torch.utils._pytree")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:  # on import, torchao warns about every kernel that this machine does not support
        logger.setLevel(logging.ERROR)
    try:
        return need(module, "quantize", "a quantized model")
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def _int4() -> torch.dtype:
    kind: torch.dtype = vars(torch)["int4"]  # missing from torch's type stubs
    return kind


def quantizable_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers of a model to quantize, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_plain_linear(module) and name.startswith("blocks.") and name.rpartition(".")[2] not in _AS_MATRIX
    }


def layer_sizes(config: GPTConfig) -> dict[str, tuple[int, int]]:
    """Return the sizes (O, I) of the layers to quantize in a model, by name."""
    with torch.device("meta"):
        model = GPT(config)
    return {name: (linear.out_features, linear.in_features) for name, linear in quantizable_layers(model).items()}


def check_scheme(config: GPTConfig, scheme: Quantization) -> None:
    """Check that the group size divides the inputs of every layer to quantize.

    Raises:
        UserError: It does not; the message names the layer.
    """
    for name, (_, in_features) in layer_sizes(config).items():
        scheme.check_layer(name, in_features)


def quantize_weight(weight: Tensor, scheme: Quantization) -> Any:
    """Quantize a weight (O, I) to a torchao tensor, on the weight's device."""
    ao = need_torchao()
    with torch.device("meta"):
        holder = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    holder[0].weight = nn.Parameter(weight.detach(), requires_grad=False)
    ao.quantize_(holder, scheme.torchao_config())
    return holder[0].weight.data


def to_parts(weight: Any, scheme: Quantization) -> dict[str, Tensor]:
    """Return a torchao tensor as plain ones: `qdata` (O, I), or (O, I / 2) in int4, and `scale` (O, G) or (O, 1)."""
    zero_point = getattr(weight, "zero_point", None)
    assert zero_point is None or not zero_point.any(), "symmetric"
    qdata = pack_int4(weight.qdata) if scheme.method == "int4" else weight.qdata
    return {"qdata": qdata.contiguous(), "scale": weight.scale.contiguous()}


class Rebuilder:
    """Converts plain tensors back to torchao tensors: the inverse of `to_parts`.

    Only numbers come from the file. The tensor class and its settings are those of a small template weight that is
    quantized with the installed version of torchao.

    Args:
        scheme: Scheme of the quantized weights.
        dtype: Dtype of the original weights.
        device: Device of the resulting tensors.

    Raises:
        UserError: The device does not support the scheme, or torchao is not installed.
    """

    def __init__(self, scheme: Quantization, dtype: torch.dtype, device: torch.device) -> None:
        scheme.check_device(device)
        self.scheme, self.dtype, self.device = scheme, dtype, device
        self._templates: dict[int, Any] = {}

    def __call__(self, name: str, parts: Mapping[str, Tensor], size: tuple[int, int]) -> Any:
        """Return the torchao tensor of a layer of `size` (O, I).

        Raises:
            UserError: The parts have the wrong shape or dtype.
        """
        rows, width = size
        if width not in self._templates:
            ones = torch.ones(_TEMPLATE_ROWS, width, dtype=self.dtype, device=self.device)
            self._templates[width] = quantize_weight(ones, self.scheme)
        template = self._templates[width]
        qdata, scale = parts["qdata"], parts["scale"]
        if self.scheme.method == "int4" and qdata.dtype == torch.uint8 and qdata.dim() == 2:
            qdata = unpack_int4(qdata)
        wanted = (template.qdata.dtype, size, template.scale.dtype, (rows, *template.scale.shape[1:]))
        found = (qdata.dtype, tuple(qdata.shape), scale.dtype, tuple(scale.shape))
        if found != wanted:
            raise UserError(
                f"{name} is {found[0]} {found[1]} with scales {found[2]} {found[3]}; the model has {wanted[0]} "
                f"{wanted[1]} with scales {wanted[2]} {wanted[3]}"
            )
        values = {"qdata": qdata.to(self.device), "scale": scale.to(self.device)}
        if getattr(template, "zero_point", None) is not None:
            zero_type = template.zero_point.dtype
            values["zero_point"] = torch.zeros(scale.shape, dtype=zero_type, device=self.device)
        names = [*template.tensor_attribute_names, *getattr(template, "optional_tensor_attribute_names", ())]
        return type(template)(**values, **{name: getattr(template, name) for name in names})


def pack_int4(values: Tensor) -> Tensor:
    """Pack int8 values from -8 to 7, (O, I) with even I, into uint8 (O, I / 2), first values in the low bits."""
    shifted = (values + 8).to(torch.uint8)
    return shifted[:, 0::2] | (shifted[:, 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """Unpack uint8 (O, I / 2) to int8 values (O, I): the inverse of `pack_int4`."""
    pairs = torch.stack((packed & 15, packed >> 4), dim=2)
    return pairs.flatten(1).to(torch.int8) - 8
