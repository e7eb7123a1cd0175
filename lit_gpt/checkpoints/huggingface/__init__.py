"""Hugging Face folders in and out, one file a family.

Importing: config.json → `GPTConfig`, then each of the file's tensors through the family's table; whatever is left
over, missing or of another shape is an error that lists it. Exporting is the same table read the other way.
"""

from lit_gpt.checkpoints.huggingface.exporting import export_hf
from lit_gpt.checkpoints.huggingface.family import Entry, Family, entry
from lit_gpt.checkpoints.huggingface.importing import import_hf, open_hf
from lit_gpt.checkpoints.huggingface.registry import FAMILIES, MODEL_TYPES, config_from_hf, config_to_hf
from lit_gpt.checkpoints.huggingface.weights import LazyWeights

__all__ = [
    "FAMILIES",
    "MODEL_TYPES",
    "Entry",
    "Family",
    "LazyWeights",
    "config_from_hf",
    "config_to_hf",
    "entry",
    "export_hf",
    "import_hf",
    "open_hf",
]
