"""Code: does what a model writes parse, and does it do what was asked?

Parsing runs nothing. Running takes an explicit flag and a jail (`jail.py`) that has been tried with a harmless program
first (`isolation.py`); where it cannot be had, nothing is run.
"""

from lit_gpt.evaluation.code.humaneval import HumanEval, pass_at_k
from lit_gpt.evaluation.code.parsing import ParsesAsPython

__all__ = ["HumanEval", "ParsesAsPython", "pass_at_k"]
