"""Rollouts: completions sampled from a policy, and the batches that it is trained on.

B rows, T positions, n completion tokens in a batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.objectives import PolicyLoss

PAD_MULTIPLE = 8
"""Row lengths are rounded up to a multiple of this, to limit the number of different shapes."""


class RolloutBatch(Batch, total=False):
    """Prompts with sampled completions; the labels are the completions' tokens."""

    target_index: Tensor
    """(n,) int64: positions of the completions' tokens in the flattened (B · T) batch."""
    advantages: Tensor
    """(n,) float32: advantage of the completion that each token belongs to."""
    weights: Tensor
    """(n,) float32: weight of each token in the sum of the step."""
    old_log_probs: Tensor
    """(n,) float32; absent if the policy is still the one that sampled the completions."""
    reference_log_probs: Tensor
    """(n,) float32; absent without a reference."""
    units: Tensor
    """() int64: this batch's part of the step's denominator."""


@dataclass
class Answer:
    """One completion of a group.

    Attributes:
        ids: token ids of prompt and completion.
        num_prompt: number of tokens of the prompt.
        advantage: advantage of all its tokens; 0 gives no policy gradient.
        counts: whether it is included in the mean of the step.
        old_log_probs: (completion tokens,) under the policy that sampled it, if several steps train on it.
        reference_log_probs: (completion tokens,) under the reference.
    """

    ids: list[int]
    num_prompt: int
    advantage: float = 0.0
    counts: bool = True
    old_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the completion."""
        return len(self.ids) - self.num_prompt

    def to_plain(self) -> dict[str, Any]:
        """Return the fields for a checkpoint: plain data, and tensors on the CPU."""
        return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in vars(self).items()}


def request_seed(*parts: int | str) -> int:
    """Return a seed that is a pure function of its parts, such as (seed, rollout, prompt, sample)."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:7], "little")


def chunks(answers: Sequence[Answer], size: int) -> list[list[Answer]]:
    """Split completions into forwards of at most `size`, grouping similar lengths."""
    ordered = sorted(answers, key=lambda answer: -len(answer.ids))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def rollout_batch(answers: Sequence[Answer], loss: PolicyLoss, device: torch.device, units: int = 0) -> RolloutBatch:
    """Pad completions to a batch.

    Args:
        answers: at least one completion; tokens of completions that do not count get weight 0.
        loss: the loss, which determines the weight of each token.
        device: device of the batch.
        units: see `RolloutBatch`.
    """
    longest = max(len(answer.ids) - 1 for answer in answers)
    T = max(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, PAD_MULTIPLE)
    inputs = torch.zeros(len(answers), T, dtype=torch.int64)
    labels = torch.full((len(answers), T), IGNORE_INDEX)
    for row, answer in enumerate(answers):
        ids = torch.tensor(answer.ids)
        inputs[row, : len(ids) - 1] = ids[:-1]
        # Shifted: the prompt's last position predicts the completion's first token.
        labels[row, answer.num_prompt - 1 : len(ids) - 1] = ids[answer.num_prompt :]
    tokens_of = torch.tensor([answer.num_tokens for answer in answers])
    advantages = [answer.advantage for answer in answers]
    weights = [answer.counts * loss.token_weight(answer.num_tokens) for answer in answers]
    batch = RolloutBatch(
        input_ids=inputs,
        labels=labels,
        position_ids=torch.arange(T).expand(len(answers), T).contiguous(),
        target_index=(labels.reshape(-1) != IGNORE_INDEX).nonzero().squeeze(1),
        advantages=torch.tensor(advantages, dtype=torch.float32).repeat_interleave(tokens_of),
        weights=torch.tensor(weights, dtype=torch.float32).repeat_interleave(tokens_of),
        units=torch.tensor(units),
    )
    for name in ("old_log_probs", "reference_log_probs"):
        parts = [getattr(answer, name) for answer in answers]
        if all(part is not None for part in parts):
            batch[name] = torch.cat([part.cpu() for part in parts])
    moved: Any = {name: value.to(device) for name, value in batch.items()}  # type: ignore[attr-defined]
    return moved
