"""Text generation: the engine, which runs one or many requests at once, and its inputs and outputs."""

from lit_gpt.generation.engine import Engine, EngineStats, generate
from lit_gpt.generation.loop import EngineLoop, QueueFullError, RequestHandle
from lit_gpt.generation.request import Completion, Constraint, SamplingParams, TokenEvent
from lit_gpt.generation.speculative import DraftModel, MultiTokenDrafts, PromptLookup, Speculation
from lit_gpt.generation.text import complete_texts, stream_text, stream_with

__all__ = [
    "Completion",
    "Constraint",
    "DraftModel",
    "Engine",
    "EngineLoop",
    "EngineStats",
    "MultiTokenDrafts",
    "PromptLookup",
    "QueueFullError",
    "RequestHandle",
    "SamplingParams",
    "Speculation",
    "TokenEvent",
    "complete_texts",
    "generate",
    "stream_text",
    "stream_with",
]
