"""How weights are rounded: a value that says which of torchao's workflows a model goes through.

| method | weights | activations | runs on |
|---|---|---|---|
| `int8` | 8 bits, a scale for each output, or for each group of inputs | as they are | any device |
| `int4` | 4 bits, a scale for each group of inputs | as they are | any device |
| `int8_dynamic` | 8 bits, a scale for each output | 8 bits, a scale for each token, found as it comes | CPU, CUDA |
| `fp8` | 8-bit floats (e4m3), a scale for each output | the same, found as they come | CUDA from 8.9 (Ada, Hopper) |

All of them are symmetric: zero stays zero, and nothing but scales is kept beside the rounded numbers.
"""

import logging
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from lit_gpt.errors import UserError
from lit_gpt.extras import need

Method = Literal["int8", "int4", "int8_dynamic", "fp8"]
INT4_GROUP = 32
"""Inputs that share a scale in 4 bits where nothing else is said, as in llama.cpp's q4_0."""
_GROUPED = ("int8", "int4")
FP8_CAPABILITY = (8, 9)
"""Of CUDA devices, from which on they multiply 8-bit floats."""


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
        """Plain data; `Quantization(**...)` takes it back."""
        return asdict(self)

    def __str__(self) -> str:
        return self.method if self.group_size is None else f"{self.method} in groups of {self.group_size}"

    def check_layer(self, name: str, in_features: int) -> None:
        """Refuse a layer whose inputs do not come out even in groups.

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
        """Give torchao its own configuration of the same.

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
        """Give torchao the configuration that training rounds by; its numbers are those of `torchao_config`."""
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
    for logger in talkative:  # on import it warns of every kernel that this machine has no use for
        logger.setLevel(logging.ERROR)
    try:
        return need(module, "quantize", "a quantised model")
    finally:
        for logger, level in zip(talkative, levels, strict=True):
            logger.setLevel(level)


def _int4() -> torch.dtype:
    kind: torch.dtype = vars(torch)["int4"]  # which torch's own types do not know
    return kind
