"""A GGUF file, written as a stream: one tensor in memory at a time.

Matrices are written in the type that was asked for; vectors (norms, biases), routers, learned positions and RoPE's
factors always as float32, as llama.cpp's own converters do. A matrix whose rows cannot be cut into Q8_0's blocks of 32
is written as float16.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lit_gpt.atomic import whole_file
from lit_gpt.checkpoints.gguf.architecture import Architecture, architecture_of
from lit_gpt.checkpoints.gguf.metadata import Value, hyperparameters
from lit_gpt.checkpoints.gguf.reading import check_tensors
from lit_gpt.checkpoints.gguf.table import entries, factors
from lit_gpt.checkpoints.gguf.vocabulary import vocabulary
from lit_gpt.checkpoints.huggingface.agreement import agree
from lit_gpt.checkpoints.huggingface.exporting import TRAINING_ONLY
from lit_gpt.checkpoints.huggingface.family import Entry
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.extras import need
from lit_gpt.models import GPT, GPTConfig

GGUFType = Literal["float32", "bfloat16", "float16", "q8_0"]
GGUF_TYPES: tuple[str, ...] = get_args(GGUFType)
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}
"""As `gguf.GGMLQuantizationType` spells them."""
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}
"""`gguf.LlamaFileType`."""
_WIDE = ("ffn_gate_inp.weight", "position_embd.weight", "rope_")
"""Parts of names of matrices that stay float32."""
_Q8_BLOCK = 32


@dataclass(frozen=True)
class GGUFReport:
    """What was written."""

    path: Path
    architecture: str
    num_tensors: int
    num_bytes: int
    types: Mapping[str, int]
    """How many tensors have each type."""


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
    """Write a GGUF file, whole or not at all.

    Args:
        out: The file, `<name>.gguf`; it must not exist.
        config: The model's.
        state_dict: Whole weights under our names; if they are lazy, no more than one entry is in memory at a time.
        tokenizer: The model's, its `opening_ids` as the model expects them; None: the file has none.
        stop_ids: Tokens that end a text or an answer, the end of text first.
        dtype: float32, bfloat16, float16 or q8_0, for the matrices.
        name: What llama.cpp shows as the model's name; empty: the file's.
        check: Read the file again and compare every tensor before it is called done.
        show_progress: Draw a bar on standard error.

    Raises:
        UserError: llama.cpp cannot compute the model or read the tokenizer, tensors are missing or left over, there is
            something at `out`, the package `gguf` is missing, or the disk is full.
    """
    out = Path(out)
    if out.suffix != ".gguf":
        raise UserError(f"--out {out} is a GGUF file's name, so it must end with .gguf, such as {out.name or 'x'}.gguf")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out, or remove it first")
    if dtype not in _NAMES:
        raise UserError(f"dtype {dtype!r} is unknown; for GGUF choose one of {', '.join(_NAMES)}")
    architecture = architecture_of(config)
    gguf = need("gguf", "export", "a GGUF file")
    table = entries(config, architecture)
    needed = {name for entry in table for name in entry.ours}
    given = {name for name in state_dict if not name.startswith(TRAINING_ONLY)}
    given -= {"lm_head.weight"} if config.tie_embeddings else set()
    agree(f"the weights to write as {architecture.name}", missing=needed - given, leftover=given - needed)
    extra = factors(config)
    kinds: Counter[str] = Counter()
    with whole_file(out) as path:
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
        bar = tqdm(total=kinds.total(), desc="writing", unit="tensor", disable=not show_progress)
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
    architecture: Architecture,
    tokenizer: Tokenizer | None,
    stop_ids: Sequence[int],
    dtype: str,
    name: str,
) -> dict[str, Value]:
    general: dict[str, Value] = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": _FILE_TYPES[dtype],
        "general.quantization_version": 2,
    }
    words: dict[str, Value] = {"tokenizer.ggml.model": "none"}
    if tokenizer is not None:
        words = vocabulary(tokenizer, config.vocab_size, stop_ids)
    return general | hyperparameters(config, architecture) | words


def _add(writer: Any, key: str, value: Value) -> None:
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
    if len(shape) == 1 or any(part in name for part in _WIDE):
        return "F32"
    return "F16" if dtype == "q8_0" and shape[-1] % _Q8_BLOCK else _NAMES[dtype]


def _metas(config: GPTConfig, table: list[Entry], extra: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor's shape, in the file's order."""
    with torch.device("meta"):
        ours = {key: value.detach() for key, value in GPT(config).state_dict().items()}
    yield from extra.items()
    for entry in table:
        yield from entry.to_theirs(ours).items()


def _tensors(
    table: list[Entry], extra: Mapping[str, Tensor], state_dict: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor as float32, in the file's order, each read when its turn comes."""
    yield from extra.items()
    for entry in table:
        theirs = entry.to_theirs({name: state_dict[name].detach().cpu().float() for name in entry.ours})
        for name in entry.theirs:
            yield name, theirs.pop(name).contiguous()
