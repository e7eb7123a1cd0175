"""Measuring models."""

from lit_gpt.evaluation.language_modeling import LanguageModelingMetrics, language_modeling_metrics

__all__ = ["LanguageModelingMetrics", "language_modeling_metrics"]
