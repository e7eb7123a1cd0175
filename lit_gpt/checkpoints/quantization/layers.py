"""Which layers are quantised, and one weight between its three forms: whole, torchao's tensor, and plain parts.

Quantised are the linear layers of the blocks. What stays as it is: the embedding and the head (a tied matrix is both),
norms, biases, routers (they choose rather than transform), the stacked matrices of experts, and `kv_b_proj` of latent
attention, whose matrix is also multiplied from the other side.

O outputs, I inputs, G groups of inputs.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.checkpoints.quantization.scheme import Quantization, need_torchao
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig

_AS_MATRIX = ("kv_b_proj",)
_TEMPLATE_ROWS = 16


def quantizable_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers of a model that are quantised, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.startswith("blocks.") and name.rpartition(".")[2] not in _AS_MATRIX
    }


def layer_sizes(config: GPTConfig) -> dict[str, tuple[int, int]]:
    """Name → (O, I) of the layers that are quantised in a model of this shape."""
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
