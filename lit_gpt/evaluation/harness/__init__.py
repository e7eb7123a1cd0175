"""Benchmarks through lm-eval (`pip install -e '.[eval]'`), with its tasks and scores and models of this package.

`measure.py` is the measure, `find.py` resolves task names, `forms.py` reads local files of well-known benchmarks,
`model.py` answers lm-eval's three kinds of requests, `scores.py` converts lm-eval's reports to results.
"""

from lit_gpt.evaluation.harness.measure import Harness

__all__ = ["Harness"]
