"""Optimizers, learning-rate schedules and parameter groups."""

from lit_gpt.optim.groups import parameter_groups
from lit_gpt.optim.muon import MuonAdamW, orthogonalize
from lit_gpt.optim.schedules import (
    WSD,
    Constant,
    Cosine,
    InverseSquareRoot,
    Linear,
    Schedule,
    ScheduledLR,
    check_learning_rates,
)

__all__ = [
    "WSD",
    "Constant",
    "Cosine",
    "InverseSquareRoot",
    "Linear",
    "MuonAdamW",
    "Schedule",
    "ScheduledLR",
    "check_learning_rates",
    "orthogonalize",
    "parameter_groups",
]
