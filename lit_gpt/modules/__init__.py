"""LightningModules: one objective a file, on one base."""

from lit_gpt.modules.base import GPTModule
from lit_gpt.modules.pretrain import PretrainModule

__all__ = ["GPTModule", "PretrainModule"]
