"""A GGUF file read again: every tensor against the one that was to be written."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lit_gpt.errors import UserError
from lit_gpt.extras import need

_RELATIVE = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8, "Q8_0": 1.0 / 127}
"""The largest rounding error of each type: of the value itself, and for Q8_0 of the largest of its block of 32."""
_TINY = 2.0**-24
"""The smallest step of float16 near zero."""
_MOST_STEPS = 127
"""Of a block's scale, in its largest value: a scale near zero is rounded itself, and Q8_0 has it in float16."""


def check_tensors(path: Path, expected: Iterator[tuple[str, Tensor]], total: int, show_progress: bool = False) -> None:
    """Compare a file's tensors with those that were written into it.

    Args:
        path: The file.
        expected: Name and float32 tensor of each, in the file's order.
        total: How many there are.
        show_progress: Draw a bar on standard error.

    Raises:
        UserError: one is missing, left over, of another shape, not finite, or off by more than its type rounds.
    """
    gguf = need("gguf", "export", "a GGUF file")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if len(stored) != total:
        raise UserError(f"the file holds {len(stored)} tensors where {total} were written; nothing was kept")
    for name, tensor in tqdm(expected, total=total, desc="checking", unit="tensor", disable=not show_progress):
        found = stored[name]
        kind = found.tensor_type.name
        values = torch.from_numpy(gguf.dequantize(found.data, found.tensor_type).copy()).reshape(-1)
        wanted = tensor.reshape(-1)
        if values.numel() != wanted.numel() or list(reversed(found.shape.tolist())) != list(tensor.shape):
            raise UserError(f"the file holds {name} with the shape {found.shape.tolist()}; nothing was kept")
        if not bool(wanted.isfinite().all()):
            raise UserError(f"{name} of the model holds numbers that are not finite; nothing was kept")
        error, bound = (values - wanted).abs(), _RELATIVE[kind] * wanted.abs() + _TINY
        if kind == "Q8_0":
            error = error.reshape(-1, 32).amax(1)
            bound = _RELATIVE[kind] * wanted.reshape(-1, 32).abs().amax(1) + _MOST_STEPS * _TINY / 2
        elif kind == "F32":
            bound = torch.zeros_like(bound)
        if not bool((error <= bound).all()):  # what is not a number is no agreement either
            raise UserError(
                f"{name} came back from the file off by {float(error.max()):.3g}, more than {kind} rounds; nothing "
                "was kept"
            )
