"""A model as a program of `torch.export`: one file that runs without lit_gpt, with any batch and length.

The file (`.pt2`) holds the traced operations and the weights: (B, T) int64 token ids in, (B, T, V) logits out. It is
what ExecuTorch, AOTInductor and `torch.onnx.export` start from. It has no cache: it is for scoring, embedding in other
programs, and further compilation, not for fast generation.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.atomic import atomic_file
from lit_gpt.checkpoints.bundle import torch_dtype
from lit_gpt.checkpoints.resolve import finished_model
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.precision import converted

SUFFIX = ".pt2"
_EXAMPLE = (2, 3)
"""Shape to trace with; no result depends on it."""


def save_torch_program(
    out: str | Path,
    config: GPTConfig,
    weights: Mapping[str, Tensor],
    dtype: str | None = None,
    check: bool = True,
) -> float | None:
    """Write a model as a program for CPUs, whole or not at all.

    Mixtures of experts that are not in bfloat16 apply every expert to every token: torch.export knows no grouped
    products in other types.

    Args:
        out: the file, `.pt2`.
        config: the model's.
        weights: whole, under our names.
        dtype: float32, bfloat16 or float16 for the weights; None: as they are.
        check: read the file again and compare it with the model, on shapes that were not traced.

    Returns:
        The largest difference that the check found between logits; None: it was not asked for.

    Raises:
        UserError: there is something at `out`, it does not end in `.pt2`, the dtype is unknown, the check fails, or
            the disk is full.
    """
    out = Path(out)
    if out.suffix != SUFFIX:
        raise UserError(f"{out} is to be a program of torch.export, whose name ends in {SUFFIX}; name it so")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out, or remove it first")
    kind = None if dtype is None else torch_dtype(dtype)
    model = finished_model(config, {name: converted(name, weights[name], kind).cpu() for name in weights})
    program = export_program(model)
    with atomic_file(out) as temporary:
        _write(program, temporary)
        return _difference(temporary, model) if check else None


def export_program(model: GPT) -> torch.export.ExportedProgram:
    """Trace a model, in eval mode, with batch and length free.

    Args:
        model: frozen, on a CPU.
    """
    longest = model.config.block_size
    shapes = {0: torch.export.Dim("batch")}
    if longest > 1:
        shapes[1] = torch.export.Dim("time", max=longest)
    ids = torch.zeros((_EXAMPLE[0], min(_EXAMPLE[1], longest)), dtype=torch.int64)
    with torch.no_grad():
        return torch.export.export(model.eval(), (ids,), dynamic_shapes=(shapes,), strict=False)


def loader_line(path: str | Path) -> str:
    """Return the Python expression that gives the function from ids to logits."""
    return f"torch.export.load({str(path)!r}).module()"


class _Remembers(io.FileIO):
    """A file that tells of a failed write when it is asked.

    torch's zip writer ends the whole process if a file's `write` raises: its destructor tries once more.
    """

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, or remember why not."""
        view = memoryview(data).cast("B")
        total = len(view)
        try:
            while view and self.failed is None:  # the system may take less than it was given
                view = view[super().write(view) :]
        except OSError as error:
            self.failed = error
        return total


def _write(program: torch.export.ExportedProgram, path: Path) -> None:
    with _Remembers(path, "w") as file:
        torch.export.save(program, file)
        if file.failed is not None:
            raise file.failed


def _difference(path: Path, model: GPT) -> float:
    """Compare the program in a file with the model.

    Raises:
        UserError: they differ by more than rounding.
    """
    with open(path, "rb") as file:
        loaded = torch.export.load(file).module()
    longest, vocabulary = model.config.block_size, model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with torch.no_grad():
        for rows, length in ((1, 1), (3, min(7, longest)), (1, min(longest, 600))):
            ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
            ours, theirs = model(ids).float(), loaded(ids).float()
            worst = max(worst, float((ours - theirs).abs().max()) / max(1.0, float(ours.abs().max())))
    bound = 1e-4 if model.wte.weight.dtype == torch.float32 else 5e-2
    if not worst <= bound:
        raise UserError(
            f"the program's logits differ from the model's by {worst:.1e}, more than {bound:.0e}: it is not written"
        )
    return worst
