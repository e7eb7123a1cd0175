"""Write GGUF files as a stream, with one tensor in memory at a time, and verify them by reading them back.

Matrices are written in the requested type; vectors (norms, biases), routers, learned positions and RoPE factors are
always float32, as in llama.cpp's own converters. With Q8_0, a matrix whose rows are not a multiple of its block size,
32, is written as float16.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lit_gpt.atomic import atomic_file
from lit_gpt.checkpoints.gguf.architecture import architecture_of, rope_factors, settings, weight_table
from lit_gpt.checkpoints.gguf.file import open_gguf
from lit_gpt.checkpoints.gguf.vocabulary import vocabulary
from lit_gpt.checkpoints.huggingface.tensors import check_names
from lit_gpt.checkpoints.huggingface.writing import TRAINING_ONLY
from lit_gpt.checks import local_path
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.extras import need
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.families import GGUFArchitecture
from lit_gpt.models.families.family import MetadataValue
from lit_gpt.models.families.weights import Entry
from lit_gpt.progress import Bar

GGUFType = Literal["float32", "bfloat16", "float16", "q8_0"]
GGUF_TYPES: tuple[str, ...] = get_args(GGUFType)
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}
"""Names in `gguf.GGMLQuantizationType`."""
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}
"""`gguf.LlamaFileType`."""
_ALWAYS_FLOAT32 = ("ffn_gate_inp.weight", "position_embd.weight", "rope_")
"""Substrings of the names of matrices that are always float32."""
_Q8_BLOCK = 32

_RELATIVE = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8, "Q8_0": 1.0 / 127}
"""The largest rounding error of each type, relative to the value, or for Q8_0 to the largest value in its block."""
_FLOAT16_SUBNORMAL_SPACING = 2.0**-24
"""The spacing of float16 numbers near zero."""
_LARGEST_MULTIPLE = 127
"""Largest quantized magnitude in a Q8_0 block, and thus the maximum factor on the scale's float16 rounding error."""


@dataclass(frozen=True)
class GGUFReport:
    """Summary of a GGUF file."""

    path: Path
    architecture: str
    num_tensors: int
    num_bytes: int
    types: Mapping[str, int]
    """Number of tensors of each type."""


def save_gguf(
    out: str | Path,
    config: GPTConfig,
    state_dict: Mapping[str, Tensor],
    tokenizer: Tokenizer | None = None,
    stop_ids: Sequence[int] = (),
    dtype: str = "float16",
    name: str = "",
    check: bool = True,
    show_progress: bool = False,
) -> GGUFReport:
    """Write a GGUF file, atomically.

    Args:
        out: Output file, `<name>.gguf`; it must not exist.
        config: The model's configuration.
        state_dict: Complete weights under lit_gpt's names; lazy ones are read one table entry at a time.
        tokenizer: The model's tokenizer, with the `opening_ids` that the model expects; None: the file has none.
        stop_ids: Tokens that end a text or a chat turn, the end of text first.
        dtype: Type of the matrices: float32, bfloat16, float16 or q8_0.
        name: Model name shown by llama.cpp; empty: the file's name.
        check: Whether to read the file back and compare every tensor before it is moved to `out`.
        show_progress: Whether to show progress bars on standard error.

    Raises:
        UserError: If llama.cpp does not support the model or tokenizer, tensors are missing or unexpected, `out`
            exists, the `gguf` package is missing, or the disk is full.
    """
    out = local_path("out", out)
    if out.suffix != ".gguf":
        raise UserError(f"--out {out} is a GGUF file, so its name must end with .gguf, such as {out.name or 'x'}.gguf")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out, or remove it first")
    if dtype not in _NAMES:
        raise UserError(f"dtype {dtype!r} is unknown; for GGUF choose one of {', '.join(_NAMES)}")
    architecture = architecture_of(config)
    gguf = need("gguf", "export", "a GGUF file")
    table = weight_table(config, architecture)
    needed = {name for entry in table for name in entry.local}
    given = {name for name in state_dict if not name.startswith(TRAINING_ONLY)}
    given -= {"lm_head.weight"} if config.tie_embeddings else set()
    check_names(f"the weights to write as {architecture.name}", missing=needed - given, leftover=given - needed)
    extra = rope_factors(config)
    kinds: Counter[str] = Counter()
    with atomic_file(out) as path:
        writer = gguf.GGUFWriter(path, architecture.name)
        for key, value in _pairs(config, architecture, tokenizer, stop_ids, dtype, name or out.stem).items():
            _add(writer, key, value)
        for tensor_name, meta in _metas(config, table, extra):
            kind = _type_of(tensor_name, meta.shape, dtype)
            kinds[kind] += 1
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
            nbytes = meta.numel() // block * size
            wanted = gguf.GGMLQuantizationType[kind]
            writer.add_tensor_info(tensor_name, tuple(meta.shape), np.dtype(np.float32), nbytes, raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        bar = Bar(total=kinds.total(), desc="writing", unit="tensor", disable=not show_progress)
        for tensor_name, tensor in _tensors(table, extra, state_dict):
            kind = _type_of(tensor_name, tensor.shape, dtype)
            writer.write_tensor_data(gguf.quantize(tensor.numpy(), gguf.GGMLQuantizationType[kind]))
            bar.update()
        bar.close()
        writer.close()
        if check:
            check_tensors(path, _tensors(table, extra, state_dict), kinds.total(), show_progress)
    return GGUFReport(out, architecture.name, kinds.total(), out.stat().st_size, dict(kinds))


def _pairs(
    config: GPTConfig,
    architecture: GGUFArchitecture,
    tokenizer: Tokenizer | None,
    stop_ids: Sequence[int],
    dtype: str,
    name: str,
) -> dict[str, MetadataValue]:
    general: dict[str, MetadataValue] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": _FILE_TYPES[dtype],
        "general.quantization_version": 2,
    }
    words: dict[str, MetadataValue] = {"tokenizer.ggml.model": "none"}
    if tokenizer is not None:
        words = vocabulary(tokenizer, config.vocab_size, stop_ids)
    return general | settings(config, architecture) | words


def _add(writer: Any, key: str, value: MetadataValue) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _type_of(name: str, shape: Sequence[int], dtype: str) -> str:
    if len(shape) == 1 or any(part in name for part in _ALWAYS_FLOAT32):
        return "F32"
    return "F16" if dtype == "q8_0" and shape[-1] % _Q8_BLOCK else _NAMES[dtype]


def _metas(config: GPTConfig, table: list[Entry], extra: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor on the meta device, in the file's order."""
    with torch.device("meta"):
        local = {key: value.detach() for key, value in GPT(config).state_dict().items()}
    yield from extra.items()
    for entry in table:
        yield from entry.to_file(local).items()


def _tensors(
    table: list[Entry], extra: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor as float32, in the file's order, each read on demand."""
    yield from extra.items()
    for entry in table:
        tensors = entry.to_file({name: state_dict[name].detach().cpu().float() for name in entry.local})
        for name in entry.file:
            yield name, tensors.pop(name).contiguous()


def check_tensors(path: Path, expected: Iterator[tuple[str, Tensor]], total: int, show_progress: bool = False) -> None:
    """Compare the tensors in a file with the expected ones.

    Args:
        path: GGUF file.
        expected: Names and float32 tensors, in the file's order.
        total: Number of expected tensors.
        show_progress: Whether to show a progress bar on standard error.

    Raises:
        UserError: If a tensor is missing, unexpected, not finite, has the wrong shape, or differs by more than the
            rounding error of its type.
    """
    file = open_gguf(path)
    if len(file.tensors) != total:
        raise UserError(f"the file contains {len(file.tensors)} tensors instead of {total}; nothing was written")
    for name, tensor in Bar(expected, total=total, desc="checking", unit="tensor", disable=not show_progress):
        kind, found = file.types[name], file.tensors[name]
        if found.shape != tuple(tensor.shape):
            raise UserError(f"the file contains {name} with shape {list(found.shape)}; nothing was written")
        values, wanted = found.read().float().reshape(-1), tensor.reshape(-1)
        if not bool(wanted.isfinite().all()):
            raise UserError(f"{name} of the model contains numbers that are not finite; nothing was written")
        error, bound = (values - wanted).abs(), _RELATIVE[kind] * wanted.abs() + _FLOAT16_SUBNORMAL_SPACING
        if kind == "Q8_0":
            error = error.reshape(-1, 32).amax(1)
            bound = _RELATIVE[kind] * wanted.reshape(-1, 32).abs().amax(1)
            bound += _LARGEST_MULTIPLE * _FLOAT16_SUBNORMAL_SPACING / 2
        elif kind == "F32":
            bound = torch.zeros_like(bound)
        if not bool((error <= bound).all()):  # also when the error is NaN
            raise UserError(
                f"{name} in the file differs by {float(error.max()):.3g}, more than the rounding of {kind}; nothing "
                "was written"
            )
