"""LightningModules: one training objective per file, all derived from one base class."""

from lit_gpt.modules.base import GPTModule
from lit_gpt.modules.classify import ClassificationModule
from lit_gpt.modules.distill import DistillModule
from lit_gpt.modules.dpo import DPOModule
from lit_gpt.modules.grpo import GRPOModule
from lit_gpt.modules.kto import KTOModule
from lit_gpt.modules.pretrain import PretrainModule
from lit_gpt.modules.reward import RewardModule
from lit_gpt.modules.sft import SFTModule

__all__ = [
    "ClassificationModule",
    "DPOModule",
    "DistillModule",
    "GPTModule",
    "GRPOModule",
    "KTOModule",
    "PretrainModule",
    "RewardModule",
    "SFTModule",
]
