"""Code: does what a model writes parse, and does it pass its tests?

Parsing runs nothing. Running requires an explicit flag, and a sandbox whose isolation has been verified with a harmless
program first; if that fails, nothing is run.
"""

from lit_gpt.evaluation.code.humaneval import HumanEval, pass_at_k
from lit_gpt.evaluation.code.parsing import ParsesAsPython

__all__ = ["HumanEval", "ParsesAsPython", "pass_at_k"]
