"""GGUF: a model, its tokenizer and its settings in the one file that llama.cpp reads.

`architecture` refuses what llama.cpp cannot compute exactly and names settings and tensors, from a family's
`GGUFArchitecture`; `vocabulary` is the tokenizer; `writing` streams the file and reads it again to verify it. The
`gguf` package (extra `export`) knows the file's format.

Source: llama.cpp's own converters (github.com/ggml-org/llama.cpp, `conversion/`) and, for what each architecture
reads and computes, its `src/models/`, both as of October 2026.
"""

from lit_gpt.checkpoints.gguf.architecture import architecture_of, gguf_families
from lit_gpt.checkpoints.gguf.writing import GGUF_TYPES, save_gguf

__all__ = ["GGUF_TYPES", "architecture_of", "gguf_families", "save_gguf"]
