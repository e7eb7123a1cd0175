"""Reward functions for reinforcement learning: functions of a prompt and its completion, which is never run."""

from lit_gpt.rewards.answers import ExactAnswer, Length, MatchesFormat
from lit_gpt.rewards.model import RewardModel
from lit_gpt.rewards.rating import Rated, Rewards
from lit_gpt.rewards.sample import Reward, RewardFunction, Sample

__all__ = [
    "ExactAnswer",
    "Length",
    "MatchesFormat",
    "Rated",
    "Reward",
    "RewardFunction",
    "RewardModel",
    "Rewards",
    "Sample",
]
