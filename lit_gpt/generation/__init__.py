"""From a model to text: sampling, decoding with a cache, and the engine that serves many requests at once."""

from lit_gpt.generation.engine import Engine, EngineStats
from lit_gpt.generation.generate import generate, stream
from lit_gpt.generation.loop import EngineLoop, QueueFullError, RequestHandle
from lit_gpt.generation.params import Completion, Constraint, SamplingParams, TokenEvent
from lit_gpt.generation.sampling import check_sampling, keep_top_k, keep_top_p, sample
from lit_gpt.generation.speculative import DraftModel, PromptLookup, Speculation
from lit_gpt.generation.text import complete_texts, decode_stream, stream_text, stream_with

__all__ = [
    "Completion",
    "Constraint",
    "DraftModel",
    "Engine",
    "EngineLoop",
    "EngineStats",
    "PromptLookup",
    "QueueFullError",
    "RequestHandle",
    "SamplingParams",
    "Speculation",
    "TokenEvent",
    "check_sampling",
    "complete_texts",
    "decode_stream",
    "generate",
    "keep_top_k",
    "keep_top_p",
    "sample",
    "stream",
    "stream_text",
    "stream_with",
]
