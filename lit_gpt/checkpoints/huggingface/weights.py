"""`LazyWeights`: a Hugging Face folder's tensors under our names, each read from disk when it is asked for."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lit_gpt.checkpoints.huggingface.family import Entry
from lit_gpt.checkpoints.huggingface.tensors import Stored
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.precision import converted


class LazyWeights(Mapping[str, Tensor]):
    """Our names → tensors; nothing is kept but what was read beside a tensor and not yet asked for.

    Args:
        config: The model's.
        entries: The family's table for it.
        stored: Their tensors on disk, by the names of the table.
        dtype: Floating-point type to convert to (`models/precision.py` says what stays wide); None = as stored.
        folder: Named in errors.
        left_out: Names in the folder that are not part of the language model.

    Raises:
        UserError: If a tensor has another shape than the config asks for; every one is listed.
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
        self._read_beside: dict[str, Tensor] = {}
        self._metas = _checked(config, entries, stored, folder)
        # Largest first: while memory fills, what is transient beside it grows smaller.
        ordered = sorted(entries, key=lambda entry: -sum(self._metas[name].nbytes for name in entry.ours))
        self._entry_of = {name: entry for entry in ordered for name in entry.ours}

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor, in memory of its own, contiguous."""
        if name in self._read_beside:
            return self._read_beside.pop(name)
        entry = self._entry_of[name]
        parts = entry.to_ours([self._stored[theirs].read() for theirs in entry.theirs])
        if len(parts) > 1:  # a view would keep its siblings alive
            parts = {key: part.clone(memory_format=torch.contiguous_format) for key, part in parts.items()}
        ready = {key: converted(key, part.contiguous(), self._dtype) for key, part in parts.items()}
        wanted = ready.pop(name)
        # q, k and v come from one tensor: what was read beside waits for its turn, so that each is read once.
        self._read_beside = ready
        return wanted

    def __iter__(self) -> Iterator[str]:
        return iter(self._entry_of)

    def __len__(self) -> int:
        return len(self._entry_of)

    def __contains__(self, name: object) -> bool:
        return name in self._entry_of

    def meta(self, name: str) -> Tensor:
        """The tensor on the meta device: its shape and dtype, without reading it."""
        return converted(name, self._metas[name], self._dtype)

    def to_dict(self) -> dict[str, Tensor]:
        """Everything, read now."""
        return dict(self)


def _checked(config: GPTConfig, entries: list[Entry], stored: Mapping[str, Stored], folder: Path) -> dict[str, Tensor]:
    """Our tensors on the meta device, after comparing their shapes with the model's."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    metas: dict[str, Tensor] = {}
    problems = []
    for entry in entries:
        theirs = [torch.empty(stored[n].shape, dtype=stored[n].dtype, device="meta") for n in entry.theirs]
        given = ", ".join(f"{n} {stored[n].shape}" for n in entry.theirs[:3])
        given += f" and {len(theirs) - 3} more" if len(theirs) > 3 else ""
        try:
            ours = entry.to_ours(theirs)
        except (RuntimeError, ValueError, IndexError):  # it cannot even be split as the family does it
            wanted = ", ".join(f"{name} {tuple(shapes[name])}" for name in entry.ours)
            problems.append(f"{given} cannot become {wanted}")
            continue
        for name, meta in ours.items():
            metas[name] = meta
            if meta.shape != shapes[name]:
                problems.append(f"{given} gives {name} the shape {tuple(meta.shape)}, not {tuple(shapes[name])}")
    if problems:
        raise UserError(
            f"the weights in {folder} have other shapes than config.json asks for, so the two do not belong together: "
            + "; ".join(problems)
        )
    return metas
