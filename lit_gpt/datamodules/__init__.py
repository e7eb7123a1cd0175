"""LightningDataModules, each of which turns one kind of corpus into batches for the Trainer."""

from lit_gpt.datamodules.base import StepDataModule
from lit_gpt.datamodules.classification import ClassificationDataModule, StdlibClassificationDataModule
from lit_gpt.datamodules.instruction import InstructionDataModule, StdlibInstructionDataModule
from lit_gpt.datamodules.preference import FeedbackDataModule, PreferenceDataModule, StdlibPreferenceDataModule
from lit_gpt.datamodules.prepared import MixtureDataModule, PreparedDataModule
from lit_gpt.datamodules.prompts import PromptDataModule, StdlibPromptDataModule
from lit_gpt.datamodules.rows import RowDataModule
from lit_gpt.datamodules.streaming import StreamingDataModule
from lit_gpt.datamodules.text import StdlibDataModule, TextDataModule, TokenDataModule
from lit_gpt.datamodules.windows import WindowDataModule

__all__ = [
    "ClassificationDataModule",
    "FeedbackDataModule",
    "InstructionDataModule",
    "MixtureDataModule",
    "PreferenceDataModule",
    "PreparedDataModule",
    "PromptDataModule",
    "RowDataModule",
    "StdlibClassificationDataModule",
    "StdlibDataModule",
    "StdlibInstructionDataModule",
    "StdlibPreferenceDataModule",
    "StdlibPromptDataModule",
    "StepDataModule",
    "StreamingDataModule",
    "TextDataModule",
    "TokenDataModule",
    "WindowDataModule",
]
