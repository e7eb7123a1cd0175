"""Losses as pure functions of tensors."""

from lit_gpt.objectives.cross_entropy import TokenLoss, linear_cross_entropy, token_cross_entropy

__all__ = ["TokenLoss", "linear_cross_entropy", "token_cross_entropy"]
