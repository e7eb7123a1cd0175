"""GGUF: a model, its tokenizer and its settings in the one file that llama.cpp reads.

The way out: `architecture` says which of llama.cpp's models a family is and refuses what that cannot compute exactly;
`table` names the tensors and `metadata` the settings; `vocabulary` is the tokenizer; `writing` streams the file, and
`reading` opens it again before the export is called done. The `gguf` package (extra `export`) knows the file's format.

Source: llama.cpp's own converters (github.com/ggml-org/llama.cpp, `conversion/`) and, for what each architecture
reads and computes, its `src/models/`, both as of October 2026.
"""

from lit_gpt.checkpoints.gguf.architecture import ARCHITECTURES, Architecture, architecture_of
from lit_gpt.checkpoints.gguf.writing import GGUF_TYPES, save_gguf

__all__ = ["ARCHITECTURES", "GGUF_TYPES", "Architecture", "architecture_of", "save_gguf"]
