"""A layer of somebody else's: gated linear attention (Yang et al. 2023, arXiv:2312.06635) with one decay a head.

Each head keeps a matrix S of keys times values that fades: S_t = a_t S_(t-1) + k_t v_tᵀ, y_t = q_tᵀ S_t, with
a_t = sigmoid(w · x_t) in (0, 1). Two forms compute the same: token by token, and in chunks, in which the tokens of a
chunk attend to each other under products of decays and to the matrix that the chunk found.

B batch, T time, L tokens of a chunk, C model width, H heads, D head size.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_gpt.errors import UserError
from lit_gpt.models import (
    Context,
    GPTConfig,
    LayerState,
    SequencePart,
    StepState,
    TokenMixer,
    register_token_mixer,
)

CHUNK = 16


@dataclass(frozen=True)
class GatedLinearOptions:
    """What `mixer_options: {gated_linear: ...}` may say."""

    num_heads: int = 2

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise UserError(f"mixer_options.gated_linear.num_heads is {self.num_heads}, it must be at least 1")


class GatedLinear(TokenMixer):
    """Gated linear attention.

    Args:
        config: The model's shape; `mixer_options` has the number of heads.
        layer: Which block this is.
    """

    divides_rows = True

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.num_heads = config.mixer_options_of(layer).num_heads
        C = config.n_embd
        self.head_size = C // self.num_heads
        self.q_proj = nn.Linear(C, C, bias=False)
        self.k_proj = nn.Linear(C, C, bias=False)
        self.v_proj = nn.Linear(C, C, bias=False)
        self.decay_proj = nn.Linear(C, self.num_heads)
        self.o_proj = nn.Linear(C, C, bias=False)

    def forward(self, x: Tensor, context: Context, state: StepState | None = None) -> Tensor:
        shape = (*x.shape[:2], self.num_heads, self.head_size)
        q, k, v = (projection(x).view(shape) for projection in (self.q_proj, self.k_proj, self.v_proj))
        k = k * self.head_size**-0.5
        log_decay = F.logsigmoid(self.decay_proj(x))  # (B, T, H)
        if context.sequence is not None:
            y = self._divided(q, k, v, log_decay, context.sequence)
        elif state is None:
            matrix = x.new_zeros(x.shape[0], self.num_heads, self.head_size, self.head_size)
            y, _ = in_chunks(q, k, v, log_decay, matrix, context.document_ids)
        else:
            y = state.map(self._continue, q, k, v, log_decay)
        return self.o_proj(y.flatten(2))

    def _divided(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, sequence: SequencePart) -> Tensor:
        """The chunks of this process: their own effects on the matrix first, then each from where the row is there."""
        matrix = q.new_zeros(len(q), self.num_heads, self.head_size, self.head_size)
        parts, summaries, start = [], [], 0
        for chunk in sequence.chunks:
            piece = slice(start, start := start + chunk.stop - chunk.start)
            part = (q[:, piece], k[:, piece], v[:, piece], log_decay[:, piece])
            ids = before = None
            decay = log_decay[:, piece].sum(1).exp()  # (B, H)
            if sequence.document_ids is not None:
                ids = sequence.document_ids[:, chunk]
                if chunk.start > 0:
                    before = sequence.document_ids[:, chunk.start - 1 : chunk.start]
                    decay = decay * (before == ids[:, -1:])  # nothing is left behind the start of a document
            parts.append((part, ids, before))
            summaries.append((decay[:, :, None, None], in_chunks(*part, matrix, ids)[1]))
        found = sequence.before(summaries, lambda one, next: (one[0] * next[0], next[0] * one[1] + next[1]))
        return torch.cat(
            [
                in_chunks(*part, matrix if state is None else state[1], ids, before)[0]
                for (part, ids, before), state in zip(parts, found, strict=True)
            ],
            dim=1,
        )

    def _continue(self, state: LayerState, part, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        (matrix,) = state.read(part)
        run = one_by_one if q.shape[1] == 1 else in_chunks
        y, after = run(q, k, v, log_decay, matrix)
        state.write(part, after)
        return y

    def new_state(
        self, num_rows: int, capacity: int, margin: int, dtype: torch.dtype, device: torch.device
    ) -> LayerState:
        shape = (num_rows, self.num_heads, self.head_size, self.head_size)
        return LayerState(torch.zeros(shape, dtype=dtype, device=device))

    def initial_value(self, name: str, shape: torch.Size) -> Tensor | None:
        return torch.linspace(1.0, 4.0, shape[0]) if name == "decay_proj.bias" else None

    @classmethod
    def flops_per_token(cls, config: GPTConfig, layer: int, context: int) -> int:
        return 6 * 2 * config.n_embd * config.n_embd // config.mixer_options_of(layer).num_heads


def one_by_one(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence: q, k, v (B, T, H, D), log_decay (B, T, H), matrix (B, H, D, D) → y (B, T, H, D), matrix."""
    outputs = []
    for t in range(q.shape[1]):
        matrix = log_decay[:, t, :, None, None].exp() * matrix + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t, :, None] @ matrix).squeeze(2))
    return torch.stack(outputs, dim=1), matrix


def in_chunks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    matrix: Tensor,
    document_ids: Tensor | None = None,
    before: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same, a chunk at a time; a document (B, T) begins with an empty matrix; `before` as in `one_chunk`."""
    outputs = []
    for start in range(0, q.shape[1], CHUNK):
        piece = slice(start, start + CHUNK)
        ids = None if document_ids is None else document_ids[:, piece]
        y, matrix = one_chunk(q[:, piece], k[:, piece], v[:, piece], log_decay[:, piece], matrix, ids, before)
        outputs.append(y)
        before = None if ids is None else ids[:, -1:]
    return torch.cat(outputs, dim=1), matrix


def one_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    matrix: Tensor,
    document_ids: Tensor | None,
    before: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """L tokens; `before` (B, 1) is the document of the token before the first, None = the tokens' own."""
    L = q.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, L, D)
    steps = log_decay.transpose(1, 2)  # (B, H, L)
    below = torch.ones(L, L, dtype=torch.bool, device=q.device).tril(-1)
    # Entry (i, j) sums the decays of the tokens after j up to i, and of no others: what another document decays by
    # cannot change it, not even by rounding, as it would in a difference of two running sums.
    fading = steps.unsqueeze(-1).expand(-1, -1, L, L).masked_fill(~below, 0).cumsum(2)
    sees = below | torch.eye(L, dtype=torch.bool, device=q.device)
    since = steps.cumsum(2)  # (B, H, L): since the chunk began
    continues = torch.ones(q.shape[0], 1, L, dtype=torch.bool, device=q.device)
    if document_ids is not None:
        sees = sees & (document_ids[:, :, None] == document_ids[:, None, :]).unsqueeze(1)
        if before is not None:
            continues = (document_ids == before).unsqueeze(1)
    weights = fading.exp().masked_fill(~sees, 0)
    carried = since.exp() * continues
    y = (q @ k.mT * weights) @ v + carried.unsqueeze(-1) * (q @ matrix)
    last = weights[:, :, -1].unsqueeze(-1)  # (B, H, L, 1): what is left of each token at the end
    return y.transpose(1, 2), carried[:, :, -1:, None] * matrix + (k * last).mT @ v


register_token_mixer("gated_linear", GatedLinear, GatedLinearOptions)
