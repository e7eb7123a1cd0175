"""Bias: whom does a model think of what? By likelihoods, so that a model without a chat template can be asked too."""

from lit_gpt.evaluation.safety.bbq import BBQ
from lit_gpt.evaluation.safety.crows_pairs import CrowSPairs

__all__ = ["BBQ", "CrowSPairs"]
