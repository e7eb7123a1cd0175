"""How weights are quantised: the scheme, the layers that it applies to, and the forms of a quantised weight.

| method | weights | activations | runs on |
|---|---|---|---|
| `int8` | 8 bits, a scale for each output, or for each group of inputs | unchanged | any device |
| `int4` | 4 bits, a scale for each group of inputs | as they are | any device |
| `int8_dynamic` | 8 bits, a scale for each output | 8 bits, a scale for each token, found as it comes | CPU, CUDA |
| `fp8` | 8-bit floats (e4m3), a scale for each output | the same, found as they come | CUDA from 8.9 (Ada, Hopper) |

All of them are symmetric: zero stays zero, and nothing but scales is stored besides the rounded numbers.

The linear layers of the blocks are quantised. Not quantised are the embedding and the head (a tied matrix is both),
norms, biases, routers (they choose rather than transform), the stacked matrices of experts, and `kv_b_proj` of latent
attention, whose matrix is also multiplied from the other side.

O outputs, I inputs, G groups of inputs.
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

Method = Literal["int8", "int4", "int8_dynamic", "fp8"]
INT4_GROUP = 32
"""Inputs that share a scale in 4 bits by default, as in llama.cpp's q4_0."""
_GROUPED = ("int8", "int4")
_AS_MATRIX = ("kv_b_proj",)
_TEMPLATE_ROWS = 16
FP8_CAPABILITY = (8, 9)
"""CUDA compute capability from which on devices multiply 8-bit floats."""


@dataclass(frozen=True)
class Quantization:
    """A method and its group size.

    Attributes:
        method: See the table above.
        group_size: Inputs of a layer that share a scale; None: 32 in `int4`, else the whole row.

    Raises:
        UserError: The method is unknown, or has no groups of this size.
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
                f"group_size is {self.group_size}, but {self.method} has one scale a row; leave it out, or choose "
                f"{' or '.join(_GROUPED)}"
            )
        if not isinstance(self.group_size, int) or self.group_size < 2:
            raise UserError(f"group_size is {self.group_size}; it must be at least 2, such as {INT4_GROUP}")
        if self.method == "int4" and self.group_size % 2:
            raise UserError(f"group_size is {self.group_size}; in int4, where two share a byte, it must be even")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `Quantization(**...)` is the inverse."""
        return asdict(self)

    def __str__(self) -> str:
        return self.method if self.group_size is None else f"{self.method} in groups of {self.group_size}"

    def check_layer(self, name: str, in_features: int) -> None:
        """Refuse a layer whose inputs are not a multiple of the group size.

        Raises:
            UserError: Names the layer and what would fit.
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
        """Refuse a device that cannot compute with these weights.

        Raises:
            UserError: Says what can.
        """
        if self.method == "fp8":
            capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
            if capability is None or capability < FP8_CAPABILITY:
                has = device.type if capability is None else f"CUDA capability {capability[0]}.{capability[1]}"
                raise UserError(
                    f"fp8 needs a CUDA device of capability {FP8_CAPABILITY[0]}.{FP8_CAPABILITY[1]} or more (Ada, "
                    f"Hopper); this one is {has}. int8 runs everywhere"
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
        """Return torchao's configuration for fake quantisation in training; it rounds exactly as `torchao_config`."""
        ao = need_torchao()
        assert self.method in _GROUPED, "weights alone"
        granularity = ao.PerAxis(0) if self.group_size is None else ao.PerGroup(self.group_size)
        bits = _int4() if self.method == "int4" else torch.int8
        return ao.IntxWeightOnlyConfig(weight_dtype=bits, granularity=granularity)


def need_torchao(module: str = "torchao.quantization") -> Any:
    """Import torchao.

    Raises:
        UserError: It is not installed.
    """
    talkative = [logging.getLogger(name) for name in ("torchao", "torchao.kernel.intmm", "torch.utils._pytree")]
    levels = [logger.level for logger in talkative]
    for logger in talkative:  # on import it warns about every kernel that this machine cannot use
        logger.setLevel(logging.ERROR)
    try:
        return need(module, "quantize", "a quantised model")
    finally:
        for logger, level in zip(talkative, levels, strict=True):
            logger.setLevel(level)


def _int4() -> torch.dtype:
    kind: torch.dtype = vars(torch)["int4"]  # which torch's type stubs do not know
    return kind


def quantizable_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers of a model that are quantised, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.startswith("blocks.") and name.rpartition(".")[2] not in _AS_MATRIX
    }


def layer_sizes(config: GPTConfig) -> dict[str, tuple[int, int]]:
    """Return name → (O, I) of the layers that are quantised in a model of this shape."""
    with torch.device("meta"):
        model = GPT(config)
    return {name: (linear.out_features, linear.in_features) for name, linear in quantizable_layers(model).items()}


def check_scheme(config: GPTConfig, scheme: Quantization) -> None:
    """Refuse groups that do not fit a model's layers.

    Raises:
        UserError: names the layer.
    """
    for name, (_, in_features) in layer_sizes(config).items():
        scheme.check_layer(name, in_features)


def quantize_weight(weight: Tensor, scheme: Quantization) -> Any:
    """Round a weight (O, I) to torchao's tensor, on the device it is on."""
    ao = need_torchao()
    with torch.device("meta"):
        holder = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    holder[0].weight = nn.Parameter(weight.detach(), requires_grad=False)
    ao.quantize_(holder, scheme.torchao_config())
    return holder[0].weight.data


def to_parts(weight: Any, scheme: Quantization) -> dict[str, Tensor]:
    """The plain tensors of torchao's: `qdata` (O, I), two to a byte in 4 bits, and `scale` (O, G) or (O, 1)."""
    zero_point = getattr(weight, "zero_point", None)
    assert zero_point is None or not zero_point.any(), "symmetric"
    qdata = pack_int4(weight.qdata) if scheme.method == "int4" else weight.qdata
    return {"qdata": qdata.contiguous(), "scale": weight.scale.contiguous()}


class Rebuilder:
    """From plain parts back to torchao's tensors, of the class and with the settings that the scheme has today.

    Nothing of it comes from the file but numbers: class and settings are those of a small weight that is quantised
    here and now.

    Args:
        scheme: How the weights were rounded.
        dtype: Of the weights before.
        device: Where the tensors shall be.

    Raises:
        UserError: The device cannot compute with them, or torchao is not installed.
    """

    def __init__(self, scheme: Quantization, dtype: torch.dtype, device: torch.device) -> None:
        scheme.check_device(device)
        self.scheme, self.dtype, self.device = scheme, dtype, device
        self._templates: dict[int, Any] = {}

    def __call__(self, name: str, parts: Mapping[str, Tensor], size: tuple[int, int]) -> Any:
        """The tensor of a layer of (O, I) `size`.

        Raises:
            UserError: The parts have other shapes or types than such a layer's.
        """
        rows, width = size
        if width not in self._templates:
            zeros = torch.ones(_TEMPLATE_ROWS, width, dtype=self.dtype, device=self.device)
            self._templates[width] = quantize_weight(zeros, self.scheme)
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
    """Whole numbers from -8 to 7 as int8 (O, I), I even → bytes (O, I / 2): the first of two in the low half."""
    shifted = (values + 8).to(torch.uint8)
    return shifted[:, 0::2] | (shifted[:, 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """What `pack_int4` packed."""
    pairs = torch.stack((packed & 15, packed >> 4), dim=2)
    return pairs.flatten(1).to(torch.int8) - 8
