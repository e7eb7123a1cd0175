"""Code measures: does generated code parse, and does it pass its tests?

Parsing executes nothing. Execution requires an explicit flag, and a sandbox whose isolation has first been verified
with a harmless program; if the check fails, nothing is executed.
"""

from lit_gpt.evaluation.code.humaneval import HumanEval, pass_at_k
from lit_gpt.evaluation.code.parsing import ParsesAsPython

__all__ = ["HumanEval", "ParsesAsPython", "pass_at_k"]
