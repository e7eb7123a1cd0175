"""Context parallelism: each row of a batch is divided over the processes of the mesh dimension "context".

Every process of the dimension loads the same rows and keeps its share of their tokens. Embeddings, norms, MLPs, experts
and the loss treat each token by itself, so they run on the share alone; only token mixers need more. Attention gathers
the keys and values of the whole row and computes the scores of its own queries, as Llama 3 was trained (Dubey et al.
2024, arXiv:2407.21783, section 3.3.2): unlike with ring attention, any mask works, and grouped keys and values (or
latents) are small compared with the scores' work, which grows with the square of the row.

**The cut.** With causal attention the last tokens of a row cost most. A row is therefore cut into 2c chunks for c
processes, and process r holds chunks r and 2c - 1 - r: one early and one late, so that all have the same work.

    c = 2:   | 0 | 1 | 2 | 3 |     process 0: chunks 0 and 3, process 1: chunks 1 and 2

Rows are padded to a multiple of 2c with unsupervised tokens that no other token attends to. `cut_batch` does this once
for a batch, on the host; all that follows sees tokens (`ContextPart`), and positions, documents and labels are those of
the whole row, computed before the cut.

**Gradients.** The loss of a process is the sum over its own tokens. The backward pass of gathering keys and values is a
reduce-scatter that sums what the queries of all processes contribute, and the processes' gradients of the weights are
summed by FSDP like those of data-parallel processes, of which `DataInfo.data_parallel` counts these as some.

**Determinism.** A process computes the same scores as one process alone. Two things are added up in another order: the
gradients of keys and values (over processes), and those of the weights. See the table in docs/pages/how-to/scale.md.

B batch, T tokens of a row, t of this process, c processes, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.mixers import SequencePart, State, check_divisible_rows, mixer_kind

Tree = TypeVar("Tree")
# Named so since torch 2.13, which warns of the names before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
FIELDS = ("input_ids", "position_ids", "labels", "document_ids")
"""Fields of a batch that a process keeps of the whole rows, too."""
PADDING = {"labels": IGNORE_INDEX, "document_ids": -1}
"""Values of the tokens that fill a row up; other fields get 0."""


class ContextPart(SequencePart):
    """The tokens of one process, and the whole rows that they are from, on one device.

    Args:
        rows: `FIELDS` of the whole rows, (B, T) each; `labels` and `document_ids` may be missing.
        rank: Rank of this process among those that share the rows.
        size: Number of processes, c.
        group: Their process group; None = all processes.
        num_read: Tokens of a row without the padding that makes it divisible.
    """

    def __init__(self, rows: Mapping[str, Tensor], rank: int, size: int, group: Any, num_read: int) -> None:
        self.rank, self.size, self.group, self.num_read = rank, size, group, num_read
        self.input_ids, self.position_ids = rows["input_ids"], rows["position_ids"]
        self.labels, self.document_ids = rows.get("labels"), rows.get("document_ids")
        self.num_tokens = self.input_ids.shape[1]
        self.chunks = chunks_of(self.num_tokens, rank, size)
        self.index = torch.cat([torch.arange(chunk.start, chunk.stop) for chunk in self.chunks])
        self.index = self.index.to(self.input_ids.device)

    def to(self, device: torch.device, non_blocking: bool = False) -> "ContextPart":
        """Return the part with its tensors on a device (called by Lightning with the batch's tensors)."""
        return self.map(lambda rows: rows.to(device, non_blocking=non_blocking))

    def map(self, function: Callable[[Tensor], Tensor]) -> "ContextPart":
        """Return the part with each field of the whole rows replaced by a function of it."""
        rows = {name: function(value) for name in FIELDS if (value := getattr(self, name)) is not None}
        return ContextPart(rows, self.rank, self.size, self.group, self.num_read)

    def gather(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Return the whole rows of tensors; see `SequencePart.gather`."""
        flat = torch.cat([part.flatten(2) for part in parts], dim=-1)
        whole: Tensor = _Gather.apply(flat, self.size, self.group)
        widths = [part.shape[2:].numel() for part in parts]
        return tuple(
            piece.unflatten(-1, part.shape[2:]) for piece, part in zip(whole.split(widths, dim=-1), parts, strict=True)
        )

    def before(self, summaries: Sequence[State], compose: Callable[[State, State], State]) -> list[State | None]:
        """Return the summary of everything before each chunk; see `SequencePart.before`."""
        # A row of two "tokens", the summaries of this process's chunks, gathers in the order of the row's chunks.
        tensors = zip(*summaries, strict=True)
        gathered = self.gather(*(torch.stack(pair, dim=1) for pair in tensors))  # each (B, 2c, ...)
        total: State | None = None
        found: list[State | None] = []
        for chunk in range(2 * self.size):
            found.append(total)
            summary = tuple(tensor[:, chunk] for tensor in gathered)
            total = summary if total is None else compose(total, summary)
        return [found[self.rank], found[2 * self.size - 1 - self.rank]]

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over the processes that share the rows."""
        value = value.detach().clone()
        dist.all_reduce(value, group=self.group)
        return value


class _Gather(torch.autograd.Function):
    """All-gather the chunks of all processes in the order of the row; backward: reduce-scatter of the gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, size: int, group: Any) -> Tensor:
        """Gather: (B, t, F) → (B, T, F)."""
        ctx.size, ctx.group = size, group
        everyone = part.new_empty(size * part.shape[0], *part.shape[1:])  # (c B, t, F)
        _all_gather(everyone, part.contiguous(), group=group)
        early, late = everyone.view(size, part.shape[0], 2, -1, part.shape[2]).unbind(2)  # (c, B, t/2, F) each
        return torch.cat((early, late.flip(0))).transpose(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Sum: (B, T, F) → (B, t, F)."""
        chunks = grad.unflatten(1, (2 * ctx.size, -1)).transpose(0, 1)  # (2c, B, t/2, F)
        early, late = chunks[: ctx.size], chunks[ctx.size :].flip(0)
        everyone = torch.stack((early, late), dim=2).flatten(2, 3).flatten(0, 1)  # (c B, t, F)
        part = everyone.new_empty(everyone.shape[0] // ctx.size, *everyone.shape[1:])
        _reduce_scatter(part, everyone, group=ctx.group)
        return part, None, None


def chunks_of(num_tokens: int, rank: int, size: int) -> tuple[slice, slice]:
    """Return where the two chunks of a process lie in a row.

    Args:
        num_tokens: T, a multiple of 2 · size.
        rank: Rank of the process, from 0.
        size: Number of processes.

    Example:
        >>> chunks_of(8, 1, 2)
        (slice(2, 4, None), slice(4, 6, None))
    """
    length = num_tokens // (2 * size)
    late = 2 * size - 1 - rank
    return slice(rank * length, (rank + 1) * length), slice(late * length, (late + 1) * length)


def cut_batch(batch: Tree, mesh: DeviceMesh) -> Tree:
    """Return this process's tokens of a batch, or of each batch in a list.

    Tensors whose first two dimensions are (B, T) are cut; `target_index` is that of the remaining tokens; `num_bytes`
    stays on the first process alone, so that a sum over processes counts each byte once. Other values are kept.

    Args:
        batch: A batch, or the micro-batches of an optimizer step.
        mesh: The mesh dimension "context".

    Raises:
        UserError: If it is not a batch of token rows.
    """
    if isinstance(batch, list):
        return [cut_batch(micro_batch, mesh) for micro_batch in batch]  # type: ignore[return-value]
    return cut_rows(batch, mesh.get_local_rank(), mesh.size(), mesh.get_group())  # type: ignore[return-value,arg-type]


def cut_rows(batch: Mapping[str, Any], rank: int, size: int, group: Any = None) -> dict[str, Any]:
    """Return one process's tokens of a batch; see `cut_batch`.

    Raises:
        UserError: The batch has no `input_ids` (B, T).
    """
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise UserError(
            f"context is {size}, but a batch is a {type(batch).__name__} without input_ids (B, T), which context "
            "parallelism cannot divide; set context: 1, or see lit_gpt.batch for the fields of a batch"
        )
    B, num_read = ids.shape
    missing = -num_read % (2 * size)
    whole = dict(batch)
    if "position_ids" not in whole:
        whole["position_ids"] = torch.arange(num_read, device=ids.device).expand(B, -1)
    if missing and "document_ids" not in whole:
        whole["document_ids"] = torch.zeros_like(ids)  # so that the padding is known to be none of the row's tokens
    per_token = [name for name, value in whole.items() if isinstance(value, Tensor) and value.shape[:2] == ids.shape]
    for name in per_token if missing else ():
        value = whole[name]
        padding = value.new_full((B, missing, *value.shape[2:]), PADDING.get(name, 0))
        whole[name] = torch.cat((value, padding), dim=1)
    sequence = ContextPart({name: whole[name] for name in per_token}, rank, size, group, num_read)
    cut = {name: sequence.own(whole[name]) if name in per_token else value for name, value in whole.items()}
    if "target_index" in batch:
        cut["target_index"] = _own_targets(batch["target_index"], num_read, sequence)
    if "num_bytes" in batch and rank > 0:
        cut["num_bytes"] = torch.zeros_like(batch["num_bytes"])
    if ids.is_pinned():  # so that the copy to the device does not wait
        cut = {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in cut.items()}
    cut["sequence"] = sequence
    return cut


def _own_targets(target_index: Tensor, num_read: int, sequence: ContextPart) -> Tensor:
    """Return the supervised positions of the cut, flattened batch, from those of the whole one."""
    row, place = target_index // num_read, target_index % num_read
    here = torch.full((sequence.num_tokens,), -1, dtype=torch.int64)
    here[sequence.index] = torch.arange(len(sequence.index))
    own = here[place]
    return (row * len(sequence.index) + own)[own >= 0]


def check_context_parallel(config: GPTConfig) -> None:
    """Raise if a model's rows cannot be divided.

    Raises:
        UserError: With the kinds of layers that do not support it.
    """
    kinds = {config.token_mixer(layer) for layer in range(config.n_layer)}
    check_divisible_rows([(name, mixer_kind(name).build) for name in kinds])
