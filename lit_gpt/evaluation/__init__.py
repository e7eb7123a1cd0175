"""Measuring models."""

from lit_gpt.evaluation.language_modeling import LanguageModelingMetrics

__all__ = ["LanguageModelingMetrics"]
