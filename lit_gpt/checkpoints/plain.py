"""What a checkpoint may hold beside its weights: plain data and tensors, nothing that names code.

`torch.load(weights_only=True)` refuses everything else, but only when the checkpoint is needed. So the check is at
save time, where the value's place in the checkpoint can be named and nothing is lost yet. Values that have an
obvious plain form are brought into it: a path becomes a string, a numpy scalar a Python number.
"""

import enum
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_gpt.errors import UserError

SCALARS = (type(None), bool, int, float, complex, str, bytes)
AS_THEY_ARE = (torch.Size, torch.dtype, torch.device)


def to_plain(value: Any, place: str = "checkpoint") -> Any:
    """Return a copy that `torch.load(weights_only=True)` gives back; tensors are shared, not copied.

    Args:
        value: any nesting of dicts, lists, tuples and sets around scalars and tensors.
        place: what to call `value` in an error; keys and indices are added to it.

    Raises:
        UserError: something in it has no plain form, with its place.
    """
    kind = type(value)
    if kind in SCALARS or kind in AS_THEY_ARE:
        return value
    if isinstance(value, Tensor):
        return _plain_tensor(value, place)
    if isinstance(value, enum.Enum):
        return to_plain(value.value, place)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, np.generic):
        return to_plain(value.item(), place)
    if isinstance(value, Mapping):
        items = ((_plain_key(key, place), to_plain(item, f"{place}[{key!r}]")) for key, item in value.items())
        return kind(items) if kind is OrderedDict else Counter(dict(items)) if kind is Counter else dict(items)
    if isinstance(value, list | tuple):  # a named tuple loses its name: its class would have to be imported
        items_ = [to_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
        return items_ if isinstance(value, list) else tuple(items_)
    if kind is set:
        return {to_plain(item, f"{place}{{...}}") for item in value}
    for base in (int, float, str):  # a subclass of a scalar
        if isinstance(value, base):
            return base(value)
    raise UserError(
        f"{place} is a {kind.__module__}.{kind.__qualname__}, which cannot be checkpointed: a checkpoint holds plain "
        "data and tensors only, so that loading it never runs code. Save numbers, strings, lists, dicts or tensors "
        "instead, or leave it out (save_hyperparameters(ignore=[...]), state_dict of the callback or DataModule)"
    )


def _plain_key(key: Any, place: str) -> Any:
    return to_plain(key, f"the key {key!r} of {place}")


def _plain_tensor(value: Tensor, place: str) -> Tensor:
    if type(value) in (Tensor, nn.Parameter) or type(value) in torch.serialization.get_safe_globals():
        return value
    raise UserError(
        f"{place} is a {type(value).__module__}.{type(value).__qualname__}, a tensor of its own kind that a checkpoint "
        "does not load back; save a plain tensor (of a sharded one, full_tensor())"
    )
