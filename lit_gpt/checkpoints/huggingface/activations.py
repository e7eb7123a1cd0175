"""Names of plain activations in config.json."""

from lit_gpt.errors import UserError
from lit_gpt.models.choices import Activation

# "gelu_new", "gelu_fast" and "gelu_pytorch_tanh" are one function, written in three ways.
_READ: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu2": "relu2",
}
_WRITE = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu2": "relu2"}


def read_activation(key: str, name: str) -> Activation:
    """Their name → ours.

    Raises:
        UserError: If it is none of those that are computed.
    """
    if name not in _READ:
        raise UserError(f"{key} {name!r} is not one of {', '.join(_READ)}")
    return _READ[name]


def write_activation(family: str, name: Activation) -> str:
    """Ours → their name.

    Raises:
        UserError: If the family has no such MLP.
    """
    if name not in _WRITE:
        raise UserError(f"family {family!r} cannot express mlp {name!r} (only {', '.join(_WRITE)})")
    return _WRITE[name]
