"""A Hugging Face folder → `GPTConfig` and weights under our names."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.checkpoints.huggingface import multimodal
from lit_gpt.checkpoints.huggingface.agreement import agree
from lit_gpt.checkpoints.huggingface.family import Entry, Family
from lit_gpt.checkpoints.huggingface.quantized import dequantized
from lit_gpt.checkpoints.huggingface.registry import FAMILIES, config_from_hf
from lit_gpt.checkpoints.huggingface.tensors import Stored, open_tensors, read_json
from lit_gpt.checkpoints.huggingface.weights import LazyWeights
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig


def import_hf(path: str | Path, dtype: torch.dtype | None = None) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Read a Hugging Face model folder.

    Args:
        path: The folder, with config.json and weights.
        dtype: Floating-point type to convert to while reading; None = that of the file.

    Returns:
        The config, and the weights under our names; a tied head is in there once, as `wte.weight`
        (`GPT.load_state_dict` knows).

    Raises:
        UserError: If a file is missing or damaged, the family is unknown, or weights and config disagree.
    """
    config, weights = open_hf(path, dtype)
    return config, weights.to_dict()


def open_hf(path: str | Path, dtype: torch.dtype | None = None) -> tuple[GPTConfig, LazyWeights]:
    """Like `import_hf`, but each tensor is read when it is asked for: a copy on disk needs no memory for the model."""
    folder = Path(path)
    values = read_json(folder / "config.json")
    config = config_from_hf(values)
    family = FAMILIES[config.family]
    entries = family.entries(config)
    stored, left_out = _renamed(family, config, values, dequantized(values, open_tensors(folder)))
    stored = _matched(family, config, stored, entries, folder)
    return config, LazyWeights(config, entries, stored, dtype, folder, left_out)


def _renamed(
    family: Family, config: GPTConfig, values: dict[str, Any], stored: dict[str, Stored]
) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """The tensors under today's names, without what is not the language model's; and the names of the latter."""
    seeing = multimodal.is_multimodal(values)
    renamed = (*(multimodal.RENAMED if seeing else ()), *family.renamed)
    unwanted = (*(multimodal.LEFT_OUT if seeing else ()), *family.left_out(config, values, stored))
    kept: dict[str, Stored] = {}
    for name, tensor in stored.items():
        if name.startswith(unwanted) or name.endswith(family.buffers):
            continue
        beginning = next(((old, new) for old, new in renamed if name.startswith(old)), ("", ""))
        kept[beginning[1] + name.removeprefix(beginning[0])] = tensor
    return kept, tuple(sorted(name for name in stored if name.startswith(unwanted)))


def _matched(
    family: Family, config: GPTConfig, stored: dict[str, Stored], entries: list[Entry], folder: Path
) -> dict[str, Stored]:
    """The tensors under the table's names, after checking that the folder holds those and nothing else."""
    needed = {name for entry in entries for name in entry.theirs}
    named: dict[str, Stored] = {}
    for name, tensor in stored.items():
        # Files saved from the model without its head lack the prefix.
        whole = name if name in needed else family.base_prefix + name
        named[whole if whole in needed else name] = tensor
    head = named.pop(family.head, None) if config.tie_embeddings else None
    agree(f"{folder}", missing=needed - set(named), leftover=set(named) - needed)
    if head is not None:
        embedding = next(entry.theirs[0] for entry in entries if entry.ours == ("wte.weight",))
        if head.shape != named[embedding].shape or not torch.equal(head.read(), named[embedding].read()):
            raise UserError(
                f"config.json in {folder} ties the embeddings, but {family.head} and {embedding} differ; "
                "set tie_word_embeddings to false there"
            )
    return named
