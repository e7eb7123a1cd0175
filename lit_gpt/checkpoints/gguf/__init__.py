"""GGUF: a model, its tokenizer and its settings in one file for llama.cpp.

`architecture` rejects models that llama.cpp cannot compute exactly, and maps settings and tensor names with a family's
`GGUFArchitecture`; `vocabulary` converts the tokenizer, in both directions; `writing` streams the file to disk and
verifies it. `file` opens a file, and `reading` converts it back to a config and weights. The `gguf` package (extra
`export`) quantizes and dequantizes.

Source: llama.cpp's own converters (github.com/ggml-org/llama.cpp, `conversion/`) and, for what each architecture
reads and computes, its `src/models/`, both as of October 2026.
"""

from lit_gpt.checkpoints.gguf.architecture import architecture_of, gguf_families
from lit_gpt.checkpoints.gguf.reading import open_gguf_model
from lit_gpt.checkpoints.gguf.writing import GGUF_TYPES, save_gguf

__all__ = ["GGUF_TYPES", "architecture_of", "gguf_families", "open_gguf_model", "save_gguf"]
