"""LightningDataModules: each turns one kind of corpus into batches for the Trainer."""

from lit_gpt.datamodules.base import TokenDataModule
from lit_gpt.datamodules.stdlib import StdlibDataModule
from lit_gpt.datamodules.text import TextDataModule

__all__ = ["StdlibDataModule", "TextDataModule", "TokenDataModule"]
