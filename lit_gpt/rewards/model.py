"""A trained reward model as a reward function."""

from collections.abc import Sequence
from functools import cached_property

import torch

from lit_gpt.checks import check_at_least
from lit_gpt.data.chat import Message
from lit_gpt.generation.scorer import RewardScorer, load_scorer
from lit_gpt.rewards.sample import Reward, Sample


class RewardModel(Reward):
    """The score of a trained `RewardModule` for the conversation with the completion as its last answer.

    Args:
        model: A run or checkpoint of `RewardModule`.
        device: Device of the reward model; `auto`: the first GPU, or the CPU.
        batch_size: Number of conversations per forward pass.
        empty: Reward of an empty completion, which is not scored by the model.
    """

    def __init__(self, model: str, device: str = "auto", batch_size: int = 8, empty: float = 0.0) -> None:
        check_at_least("batch_size of RewardModel", batch_size, 1)
        self.model = model
        self.device = device
        self.batch_size = batch_size
        self.empty = empty

    @cached_property
    def scorer(self) -> RewardScorer:
        """The model, loaded on first use."""
        device = self.device
        if device == "auto":
            device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
        return load_scorer(self.model, device)

    def __call__(self, sample: Sample) -> float:
        """Return the reward of one sample."""
        return self.rate([sample])[0]

    def rate(self, samples: Sequence[Sample]) -> list[float]:
        """Return the rewards of many samples, batch by batch."""
        rewards = [self.empty] * len(samples)
        answered = [position for position, sample in enumerate(samples) if sample.completion.strip()]
        with torch.autocast(self.scorer.score.device.type, enabled=False):
            for start in range(0, len(answered), self.batch_size):
                positions = answered[start : start + self.batch_size]
                conversations = [
                    [*samples[p].prompt, Message(role="assistant", content=samples[p].completion)] for p in positions
                ]
                for position, value in zip(positions, self.scorer.rate(conversations), strict=True):
                    rewards[position] = value
        return rewards
