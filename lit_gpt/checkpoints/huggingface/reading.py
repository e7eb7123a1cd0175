"""Read a Hugging Face folder as a `GPTConfig` and weights under lit_gpt's names."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.checkpoints.huggingface.config import config_from_hf, multimodal_family
from lit_gpt.checkpoints.huggingface.quantized import dequantized
from lit_gpt.checkpoints.huggingface.tensors import Stored, check_names, open_tensors, read_json
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.families import Family, get_family
from lit_gpt.models.families.weights import Entry
from lit_gpt.models.precision import converted

_TEXT_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),  # the older form
    ("language_model.lm_head.", "lm_head."),
)
"""Prefixes of the language model's tensors in a multimodal model → their prefixes in a plain language model."""
_VISION_PREFIXES = ("model.vision_tower.", "vision_tower.", "model.multi_modal_projector.", "multi_modal_projector.")


class LazyWeights(Mapping[str, Tensor]):
    """A folder's tensors under lit_gpt's names, each read from disk on access.

    Nothing is kept in memory except tensors that were read together with another one and not accessed yet.

    Args:
        config: The model's configuration.
        entries: The family's weight table for this configuration.
        stored: The tensors on disk, by their names in the table.
        dtype: Floating-point type to convert to (`models/precision.py` lists the exceptions); None: as stored.
        folder: Folder of the files, named in errors.
        left_out: Names of tensors in the folder that are not part of the language model.

    Raises:
        UserError: If shapes do not match the config; all mismatches are listed.
    """

    def __init__(
        self,
        config: GPTConfig,
        entries: list[Entry],
        stored: Mapping[str, Stored],
        dtype: torch.dtype | None,
        folder: Path,
        left_out: tuple[str, ...] = (),
    ) -> None:
        self.left_out = left_out
        self._stored, self._dtype = stored, dtype
        self._read_ahead: dict[str, Tensor] = {}
        self._metas = _check_shapes(config, entries, stored, folder)
        # Largest first, so that temporary copies shrink while the model fills the memory.
        ordered = sorted(entries, key=lambda entry: -sum(self._metas[name].nbytes for name in entry.local))
        self._entry_of = {name: entry for entry in ordered for name in entry.local}

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor, contiguous and with its own storage."""
        if name in self._read_ahead:
            return self._read_ahead.pop(name)
        entry = self._entry_of[name]
        parts = entry.to_local([self._stored[file_name].read() for file_name in entry.file])
        if len(parts) > 1:  # views would keep the other parts in memory
            parts = {key: part.clone(memory_format=torch.contiguous_format) for key, part in parts.items()}
        ready = {key: converted(key, part.contiguous(), self._dtype) for key, part in parts.items()}
        wanted = ready.pop(name)
        # q, k and v may be stored in one tensor: keep the other parts until they are accessed, so it is read once.
        self._read_ahead = ready
        return wanted

    def __iter__(self) -> Iterator[str]:
        return iter(self._entry_of)

    def __len__(self) -> int:
        return len(self._entry_of)

    def __contains__(self, name: object) -> bool:
        return name in self._entry_of

    def meta(self, name: str) -> Tensor:
        """Return a tensor's shape and dtype, as a tensor on the meta device, without reading it."""
        return converted(name, self._metas[name], self._dtype)

    def to_dict(self) -> dict[str, Tensor]:
        """Read all tensors into memory."""
        return dict(self)


def import_hf(path: str | Path, dtype: torch.dtype | None = None) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Read a Hugging Face model folder.

    Args:
        path: Folder with config.json and weights.
        dtype: Floating-point type to convert to while reading; None: as stored.

    Returns:
        The config, and the weights under lit_gpt's names. A tied head appears once, as `wte.weight`, which
        `GPT.load_state_dict` accepts.

    Raises:
        UserError: If a file is missing or damaged, the family is unknown, or the weights do not match the config.
    """
    config, weights = open_hf(path, dtype)
    return config, weights.to_dict()


def open_hf(path: str | Path, dtype: torch.dtype | None = None) -> tuple[GPTConfig, LazyWeights]:
    """Open a folder like `import_hf`, but read each tensor on demand, so the model need not fit in memory."""
    folder = Path(path)
    values = read_json(folder / "config.json")
    config = config_from_hf(values)
    family = get_family(config.family)
    entries = family.entries(config)
    stored, left_out = _language_model(family, config, values, dequantized(values, open_tensors(folder)))
    stored = _match_names(family, config, stored, entries, folder)
    return config, LazyWeights(config, entries, stored, dtype, folder, left_out)


def _language_model(
    family: Family, config: GPTConfig, values: dict[str, Any], stored: dict[str, Stored]
) -> tuple[dict[str, Stored], tuple[str, ...]]:
    """Return the language model's tensors under their current names, and the names of all other tensors."""
    multimodal = multimodal_family(values) is not None
    renamed = (*(_TEXT_PREFIXES if multimodal else ()), *family.renamed)
    unwanted = (*(_VISION_PREFIXES if multimodal else ()), *family.left_out(config, values, stored))
    kept: dict[str, Stored] = {}
    for name, tensor in stored.items():
        if name.startswith(unwanted) or name.endswith(family.buffers):
            continue
        old, new = next(((old, new) for old, new in renamed if name.startswith(old)), ("", ""))
        kept[new + name.removeprefix(old)] = tensor
    return kept, tuple(sorted(name for name in stored if name.startswith(unwanted)))


def _match_names(
    family: Family, config: GPTConfig, stored: dict[str, Stored], entries: list[Entry], folder: Path
) -> dict[str, Stored]:
    """Return the tensors under the table's names, after checking that none is missing or left over."""
    needed = {name for entry in entries for name in entry.file}
    named: dict[str, Stored] = {}
    for name, tensor in stored.items():
        # Files saved from the model without its head lack the prefix.
        prefixed = name if name in needed else family.base_prefix + name
        named[prefixed if prefixed in needed else name] = tensor
    head = named.pop(family.head, None) if config.tie_embeddings else None
    check_names(f"{folder}", missing=needed - set(named), leftover=set(named) - needed)
    if head is not None:
        embedding = next(entry.file[0] for entry in entries if entry.local == ("wte.weight",))
        if head.shape != named[embedding].shape or not torch.equal(head.read(), named[embedding].read()):
            raise UserError(
                f"config.json in {folder} ties the embeddings, but {family.head} and {embedding} differ; "
                "set tie_word_embeddings to false there"
            )
    return named


def _check_shapes(
    config: GPTConfig, entries: list[Entry], stored: Mapping[str, Stored], folder: Path
) -> dict[str, Tensor]:
    """Return the local tensors on the meta device, after comparing their shapes with the model's."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    metas: dict[str, Tensor] = {}
    problems = []
    for entry in entries:
        parts = [torch.empty(stored[n].shape, dtype=stored[n].dtype, device="meta") for n in entry.file]
        given = ", ".join(f"{n} {stored[n].shape}" for n in entry.file[:3])
        given += f" and {len(parts) - 3} more" if len(parts) > 3 else ""
        try:
            local = entry.to_local(parts)
        except (RuntimeError, ValueError, IndexError):  # the shape does not even allow the transforms
            wanted = ", ".join(f"{name} {tuple(shapes[name])}" for name in entry.local)
            problems.append(f"{given} cannot become {wanted}")
            continue
        for name, meta in local.items():
            metas[name] = meta
            if meta.shape != shapes[name]:
                problems.append(f"{given} gives {name} the shape {tuple(meta.shape)}, not {tuple(shapes[name])}")
    if problems:
        raise UserError(f"the shapes of the weights in {folder} do not match its configuration: " + "; ".join(problems))
    return metas
