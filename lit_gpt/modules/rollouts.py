"""Answers that a model drew, and the batches that it learns from.

B rows, T positions, n tokens of answers in a batch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_gpt.batch import IGNORE_INDEX, Batch
from lit_gpt.objectives import PolicyLoss

PAD_MULTIPLE = 8
"""Rows are as long as the longest, rounded up to this: few different shapes."""


class RolloutBatch(Batch, total=False):
    """Prompts with the answers that were drawn; the labels are the answers' tokens."""

    target_index: Tensor
    """(n,) int64: positions of the answers' tokens in the flattened (B · T) batch."""
    advantages: Tensor
    """(n,) float32: of the answer that each token is in."""
    weights: Tensor
    """(n,) float32: what each token counts in the sum of the step."""
    old_log_probs: Tensor
    """(n,) float32; absent where the policy is still the one that drew."""
    reference_log_probs: Tensor
    """(n,) float32; absent without a reference."""
    units: Tensor
    """() int64: this batch's part of what the step's sum is divided by."""


@dataclass
class Answer:
    """One answer of a group.

    Attributes:
        ids: Prompt and answer.
        num_prompt: Tokens of the prompt.
        advantage: Of all its tokens; 0 teaches nothing.
        counts: Whether it is part of the mean of the step.
        old_log_probs: (tokens of the answer,) where several steps learn from it.
        reference_log_probs: The same of the reference.
    """

    ids: list[int]
    num_prompt: int
    advantage: float = 0.0
    counts: bool = True
    old_log_probs: Tensor | None = None
    reference_log_probs: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.num_prompt

    def to_plain(self) -> dict[str, Any]:
        """Returns what a checkpoint holds."""
        cpu = {name: None if t is None else t.cpu() for name, t in self._log_probs().items()}
        return {
            "ids": self.ids,
            "num_prompt": self.num_prompt,
            "advantage": self.advantage,
            "counts": self.counts,
            **cpu,
        }

    def _log_probs(self) -> dict[str, Tensor | None]:
        return {"old_log_probs": self.old_log_probs, "reference_log_probs": self.reference_log_probs}


def request_seed(*parts: int | str) -> int:
    """A seed that is a pure function of its parts, such as (seed, rollout, prompt, sample)."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:7], "little")


def chunks(answers: Sequence[Answer], size: int) -> list[list[Answer]]:
    """Cuts answers into forwards of at most `size`, those of like length together."""
    ordered = sorted(answers, key=lambda answer: -len(answer.ids))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def with_answers(batch: Batch, answers: Mapping[int, Sequence[int]], num_bytes: Mapping[int, int]) -> Batch:
    """A padded batch with the last answers of some rows replaced.

    Args:
        batch: one conversation a row.
        answers: by row, the ids of the new answer; of such a row nothing else is learned.
        num_bytes: by row, the bytes of its text.

    Returns:
        The batch, with `own` (B,) bool: which rows are replaced.
    """
    inputs, labels = batch["input_ids"].cpu(), batch["labels"].cpu()
    rows = []
    for row in range(len(inputs)):
        end = int((labels[row] != IGNORE_INDEX).nonzero().max()) + 1 if (labels[row] != IGNORE_INDEX).any() else 1
        ids, targets = inputs[row, :end], labels[row, :end]
        if row in answers:
            answer = torch.tensor(answers[row], dtype=torch.int64)
            prompt = inputs[row, : prompt_length(labels[row])]
            ids = torch.cat([prompt, answer[:-1]])
            targets = torch.cat([torch.full((len(prompt) - 1,), IGNORE_INDEX), answer])
        rows.append((ids, targets))
    T = -(-max(len(ids) for ids, _ in rows) // PAD_MULTIPLE) * PAD_MULTIPLE
    new_inputs = torch.zeros(len(rows), T, dtype=torch.int64)
    new_labels = torch.full((len(rows), T), IGNORE_INDEX)
    for row, (ids, targets) in enumerate(rows):
        new_inputs[row, : len(ids)], new_labels[row, : len(ids)] = ids, targets
    result: Any = dict(batch) | {
        "input_ids": new_inputs,
        "labels": new_labels,
        "position_ids": torch.arange(T).expand(len(rows), T).contiguous(),
        "target_index": (new_labels.reshape(-1) != IGNORE_INDEX).nonzero().squeeze(1),
        "own": torch.tensor([row in answers for row in range(len(rows))]),
    }
    if "num_bytes" in batch:
        old = batch["num_bytes"].tolist()
        result["num_bytes"] = torch.tensor([num_bytes.get(row, size) for row, size in enumerate(old)])
    moved: Batch = {
        name: value.to(batch["input_ids"].device) if isinstance(value, Tensor) else value
        for name, value in result.items()
    }  # type: ignore[assignment]
    return moved


def prompt_length(labels: Tensor) -> int:
    """Tokens before the last answer of a row; 0 if there is none.

    Args:
        labels: (T,), shifted: `labels[t]` is the token after position t.
    """
    learned = (labels != IGNORE_INDEX).tolist()
    if not any(learned):
        return 0
    last = len(learned) - 1 - learned[::-1].index(True)
    while last > 0 and learned[last - 1]:
        last -= 1
    return last + 1


def rollout_batch(answers: Sequence[Answer], loss: PolicyLoss, device: torch.device, units: int = 0) -> RolloutBatch:
    """Pads answers to a batch.

    Args:
        answers: At least one; what does not count has no labels' weight.
        loss: Says what a token weighs.
        device: Where the batch goes.
        units: See `RolloutBatch`.
    """
    longest = max(len(answer.ids) - 1 for answer in answers)
    T = max(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, PAD_MULTIPLE)
    inputs = torch.zeros(len(answers), T, dtype=torch.int64)
    labels = torch.full((len(answers), T), IGNORE_INDEX)
    for row, answer in enumerate(answers):
        ids = torch.tensor(answer.ids)
        inputs[row, : len(ids) - 1] = ids[:-1]
        labels[row, answer.num_prompt - 1 : len(ids) - 1] = ids[answer.num_prompt :]
    each = torch.tensor([answer.num_tokens for answer in answers])
    weights = [answer.counts * loss.token_weight(answer.num_tokens) for answer in answers]
    batch = RolloutBatch(
        input_ids=inputs,
        labels=labels,
        position_ids=torch.arange(T).expand(len(answers), T).contiguous(),
        target_index=(labels.reshape(-1) != IGNORE_INDEX).nonzero().squeeze(1),
        advantages=torch.tensor([answer.advantage for answer in answers]).repeat_interleave(each),
        weights=torch.tensor(weights, dtype=torch.float32).repeat_interleave(each),
        units=torch.tensor(units),
    )
    for name in ("old_log_probs", "reference_log_probs"):
        parts = [getattr(answer, name) for answer in answers]
        if all(part is not None for part in parts):
            batch[name] = torch.cat([part.cpu() for part in parts])
    moved: Any = {name: value.to(device) for name, value in batch.items()}  # type: ignore[attr-defined]
    return moved
