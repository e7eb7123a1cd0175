"""Evaluation of models: metrics, benchmarks, code, safety, reports and the release gate.

A `Measure` asks a `Subject` and returns `Result`s; a YAML names measures (`plan.py`), and the report, the gate and the
comparison read the results. Only the table below and the light metrics are imported here: the libraries of a measure
are loaded when a plan uses it.
"""

import importlib
from typing import Any

from lit_gpt.evaluation.metrics import LanguageModelingMetrics, language_modeling_metrics

MEASURES: dict[str, str] = {
    "LanguageModeling": "lit_gpt.evaluation.language_modeling",
    "Harness": "lit_gpt.evaluation.harness",
    "HumanEval": "lit_gpt.evaluation.code",
    "ParsesAsPython": "lit_gpt.evaluation.code",
    "Memorisation": "lit_gpt.evaluation.safety.memorisation",
    "CanaryExposure": "lit_gpt.evaluation.safety.canaries",
    "MembershipInference": "lit_gpt.evaluation.safety.membership",
    "Privacy": "lit_gpt.evaluation.safety.privacy",
    "Contamination": "lit_gpt.evaluation.safety.contamination",
    "CrowSPairs": "lit_gpt.evaluation.safety.bias",
    "BBQ": "lit_gpt.evaluation.safety.bias",
    "Refusal": "lit_gpt.evaluation.safety.refusal",
    "Robustness": "lit_gpt.evaluation.safety.robustness",
    "TruthfulQA": "lit_gpt.evaluation.safety.truthfulness",
}
"""Short name of a measure in the YAML → the module that defines it."""

_OTHERS = {
    "Measure": "lit_gpt.evaluation.measure",
    "Subject": "lit_gpt.evaluation.subject",
    "load_subject": "lit_gpt.evaluation.subject",
    **dict.fromkeys(("Result", "Score", "Interval", "Example", "Chart"), "lit_gpt.evaluation.result"),
}

__all__ = ["MEASURES", "LanguageModelingMetrics", "language_modeling_metrics", *MEASURES, *_OTHERS]


def __getattr__(name: str) -> Any:
    """Import a measure or class when it is first used."""
    module = MEASURES.get(name) or _OTHERS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
