"""lit_gpt: the complete life cycle of a language model as PyTorch Lightning plugins.

The most used names can be imported from here; each is loaded on first use:

    from lit_gpt import GPT, GPTConfig, PretrainModule, StdlibDataModule, TextDataModule, Trainer
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AdapterConfig": "lit_gpt.adapters",
    "ClassificationDataModule": "lit_gpt.datamodules",
    "ClassificationModule": "lit_gpt.modules",
    "DPOModule": "lit_gpt.modules",
    "DistillModule": "lit_gpt.modules",
    "FeedbackDataModule": "lit_gpt.datamodules",
    "GPT": "lit_gpt.models",
    "GPTConfig": "lit_gpt.models",
    "GPTModule": "lit_gpt.modules",
    "GRPOModule": "lit_gpt.modules",
    "MixtureDataModule": "lit_gpt.datamodules",
    "PreparedDataModule": "lit_gpt.datamodules",
    "InstructionDataModule": "lit_gpt.datamodules",
    "KTOModule": "lit_gpt.modules",
    "PreferenceDataModule": "lit_gpt.datamodules",
    "PromptDataModule": "lit_gpt.datamodules",
    "PretrainModule": "lit_gpt.modules",
    "RewardModule": "lit_gpt.modules",
    "SFTModule": "lit_gpt.modules",
    "StdlibDataModule": "lit_gpt.datamodules",
    "StreamingDataModule": "lit_gpt.datamodules",
    "TextDataModule": "lit_gpt.datamodules",
    "TokenDataModule": "lit_gpt.datamodules",
    "Trainer": "lit_gpt.trainer",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its package."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lit_gpt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
