"""Hugging Face model folders: reading, writing and verifying them.

Reading: config.json becomes a `GPTConfig` (`config.py`), then each tensor is mapped by the family's weight table
(`models/families`); an error lists unexpected and missing tensors and those of the wrong shape. Writing uses the
same table in the other direction.
"""

from lit_gpt.checkpoints.huggingface.config import config_from_hf, config_to_hf
from lit_gpt.checkpoints.huggingface.reading import LazyWeights, import_hf, open_hf
from lit_gpt.checkpoints.huggingface.writing import export_hf

__all__ = ["LazyWeights", "config_from_hf", "config_to_hf", "export_hf", "import_hf", "open_hf"]
