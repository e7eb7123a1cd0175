"""The tokens of one step, in one row, and what is to be drawn after it.

N tokens of the step.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_gpt.generation.request import Request
from lit_gpt.models.batch_cache import Slab
from lit_gpt.models.step_cache import ChunkPart, DecodePart


@dataclass(frozen=True)
class Drawing:
    """A request whose next token is drawn, or several, where some were guessed."""

    request: Request
    row: int
    """Of the logits: those after the text so far; the following ones are those after each guess."""
    drafts: list[int] = field(default_factory=list)


class StepPlan:
    """What one forward shall do.

    Args:
        with_contexts: Whether positions are rotated by the length of their text (some RoPE scalings).
        static: Run it with fixed shapes; then it is the decoding of one slab, and nothing else.
    """

    def __init__(self, with_contexts: bool, static: bool = False) -> None:
        self.static = static
        self.parts: list[DecodePart | ChunkPart] = []
        self.drawing: list[Drawing] = []
        self.places: list[int] = []
        """At which of the N tokens logits are needed, ascending."""
        self.fed: list[tuple[Request, int]] = []
        """How many tokens of each text are among them."""
        self.num_prompt_tokens = 0
        self._ids: list[int] = []
        self._positions: list[int] = []
        self._contexts: list[int] | None = [] if with_contexts else None

    def decode(self, slab: Slab[Request]) -> None:
        """One token more for every text that is being written in a slab."""
        writing = slab.owners[: slab.num_decoding]
        lengths = [request.num_cached for request in writing]
        self.parts.append(DecodePart(slab, lengths))
        first = len(self.places)
        self.places += range(len(self._ids), len(self._ids) + len(writing))
        self.drawing += [Drawing(request, first + row) for row, request in enumerate(writing)]
        self.fed += [(request, 1) for request in writing]
        self._ids += [request.ids[-1] for request in writing]
        self._positions += lengths
        if self._contexts is not None:
            self._contexts += [length + 1 for length in lengths]

    def read_chunk(self, request: Request, budget: int) -> int:
        """The next piece of a prompt, at most `budget` tokens; returns how many."""
        start = request.num_cached
        count = min(len(request.ids) - start, budget)
        assert request.slab is not None
        self.parts.append(ChunkPart(request.slab, request.row, start, count))
        self.fed.append((request, count))
        self.num_prompt_tokens += count
        self._ids += request.ids[start : start + count]
        self._positions += range(start, start + count)
        if self._contexts is not None:
            self._contexts += [len(request.ids)] * count
        if start + count == len(request.ids):
            self.drawing.append(Drawing(request, len(self.places)))
            self.places.append(len(self._ids) - 1)
        return count

    def verify(self, request: Request, drafts: list[int]) -> None:
        """The last token of a text and the guesses after it."""
        start, count = request.num_cached, 1 + len(drafts)
        assert request.slab is not None
        self.parts.append(ChunkPart(request.slab, request.row, start, count))
        self.fed.append((request, 1))
        self.drawing.append(Drawing(request, len(self.places), drafts))
        self.places += range(len(self._ids), len(self._ids) + count)
        self._ids += [request.ids[-1], *drafts]
        self._positions += range(start, start + count)
        if self._contexts is not None:
            self._contexts += range(start + 1, start + count + 1)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Token ids, positions and lengths of texts, each (1, N) int64."""
        contexts = None if self._contexts is None else torch.tensor([self._contexts], device=device)
        return torch.tensor([self._ids], device=device), torch.tensor([self._positions], device=device), contexts
