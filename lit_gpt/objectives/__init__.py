"""Training losses as pure functions of tensors."""

from lit_gpt.objectives.cross_entropy import (
    TokenLoss,
    linear_cross_entropy,
    mtp_labels,
    token_cross_entropy,
    token_predictions,
)
from lit_gpt.objectives.distillation import divergence, linear_divergence
from lit_gpt.objectives.grpo import PolicyLoss, PolicyTerms, group_advantages, linear_entropy
from lit_gpt.objectives.log_probs import linear_log_probs
from lit_gpt.objectives.preferences import LogProbs, PreferenceLoss, kto_loss
from lit_gpt.objectives.routing import RouterTraining, expert_loads, load_measures, move_selection_bias, routing_loss

__all__ = [
    "LogProbs",
    "PolicyLoss",
    "PolicyTerms",
    "PreferenceLoss",
    "RouterTraining",
    "TokenLoss",
    "divergence",
    "expert_loads",
    "group_advantages",
    "kto_loss",
    "linear_cross_entropy",
    "linear_divergence",
    "linear_entropy",
    "linear_log_probs",
    "load_measures",
    "move_selection_bias",
    "mtp_labels",
    "routing_loss",
    "token_cross_entropy",
    "token_predictions",
]
