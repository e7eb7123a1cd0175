"""From a model to text: the engine, which serves one request or many at once, and what goes in and comes out."""

from lit_gpt.generation.engine import Engine, EngineStats, generate
from lit_gpt.generation.loop import EngineLoop, QueueFullError, RequestHandle
from lit_gpt.generation.request import Completion, Constraint, SamplingParams, TokenEvent
from lit_gpt.generation.speculative import DraftModel, PromptLookup, Speculation
from lit_gpt.generation.text import complete_texts, stream_text, stream_with

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
    "complete_texts",
    "generate",
    "stream_text",
    "stream_with",
]
