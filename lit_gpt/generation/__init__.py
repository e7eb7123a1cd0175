"""From a model to text: sampling, and decoding with a cache."""

from lit_gpt.generation.generate import generate, stream
from lit_gpt.generation.sampling import check_sampling, keep_top_k, keep_top_p, sample
from lit_gpt.generation.text import decode_stream, stream_text

__all__ = [
    "check_sampling",
    "decode_stream",
    "generate",
    "keep_top_k",
    "keep_top_p",
    "sample",
    "stream",
    "stream_text",
]
