"""A model as a `torch.export` program: one file that runs without lit_gpt, for any batch size and length.

The file (`.pt2`) contains the traced operations and the weights: (B, T) int64 token IDs in, (B, T, V) logits out. It is
the input of ExecuTorch, AOTInductor and `torch.onnx.export`. It has no KV cache, so it is meant for scoring, embedding
in other programs and further compilation, not for fast generation.
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
from lit_gpt.checks import local_path
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.precision import converted

SUFFIX = ".pt2"
_EXAMPLE = (2, 3)
"""(B, T) of the traced input; the program does not depend on it."""


def save_torch_program(
    out: str | Path,
    config: GPTConfig,
    weights: Mapping[str, Tensor],
    dtype: str | None = None,
    check: bool = True,
) -> float | None:
    """Write a model as a program for CPUs, atomically.

    Mixtures of experts in dtypes other than bfloat16 apply every expert to every token, because torch.export supports
    grouped matrix products only in bfloat16.

    Args:
        out: output file, ending in `.pt2`.
        config: the model's configuration.
        weights: complete weights under lit_gpt's names.
        dtype: dtype of the weights: float32, bfloat16 or float16; None: unchanged.
        check: whether to reload the file and compare it with the model, on shapes that were not traced.

    Returns:
        The largest difference of logits, relative to the largest logit if that is above 1; None without a check.

    Raises:
        UserError: `out` exists or does not end in `.pt2`, the dtype is unknown, the check fails, or the disk is full.
    """
    out = local_path("out", out)
    if out.suffix != SUFFIX:
        raise UserError(f"--out {out} is a torch.export program, so its name must end in {SUFFIX}")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out, or remove it first")
    kind = None if dtype is None else torch_dtype(dtype)
    model = finished_model(config, {name: converted(name, weights[name], kind).cpu() for name in weights})
    program = export_program(model)
    with atomic_file(out) as temporary:
        _write(program, temporary)
        return _difference(temporary, model) if check else None


def export_program(model: GPT) -> torch.export.ExportedProgram:
    """Trace a model in eval mode, with dynamic batch size and length.

    Args:
        model: frozen model on the CPU.
    """
    longest = model.config.block_size
    shapes = {0: torch.export.Dim("batch")}
    if longest > 1:
        shapes[1] = torch.export.Dim("time", max=longest)
    ids = torch.zeros((_EXAMPLE[0], min(_EXAMPLE[1], longest)), dtype=torch.int64)
    with torch.no_grad():
        return torch.export.export(model.eval(), (ids,), dynamic_shapes=(shapes,), strict=False)


def loader_line(path: str | Path) -> str:
    """Return the Python expression that loads the program as a function from token IDs to logits."""
    return f"torch.export.load({str(path)!r}).module()"


class _ErrorRecordingFile(io.FileIO):
    """A file that records the first failed write instead of raising it.

    torch's zip writer aborts the process if `write` raises, because its destructor writes again.
    """

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`; on failure, record the error and pretend that it was written."""
        view = memoryview(data).cast("B")
        total = len(view)
        try:
            while view and self.failed is None:  # a raw write may be partial
                view = view[super().write(view) :]
        except OSError as error:
            self.failed = error
        return total


def _write(program: torch.export.ExportedProgram, path: Path) -> None:
    with _ErrorRecordingFile(path, "w") as file:
        torch.export.save(program, file)
        if file.failed is not None:
            raise file.failed


def _difference(path: Path, model: GPT) -> float:
    """Return the largest (relative) difference between the logits of a program file and of the model.

    Raises:
        UserError: they differ by more than rounding errors.
    """
    with open(path, "rb") as file:
        loaded = torch.export.load(file).module()
    longest, vocabulary = model.config.block_size, model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with torch.no_grad():
        for rows, length in ((1, 1), (3, min(7, longest)), (1, min(longest, 600))):
            ids = torch.randint(0, vocabulary, (rows, length), generator=generator)
            expected, found = model(ids).float(), loaded(ids).float()
            worst = max(worst, float((expected - found).abs().max()) / max(1.0, float(expected.abs().max())))
    bound = 1e-4 if model.wte.weight.dtype == torch.float32 else 5e-2
    if not worst <= bound:
        raise UserError(
            f"the program's logits differ from the model's by {worst:.1e}, more than {bound:.0e}; nothing was written"
        )
    return worst
