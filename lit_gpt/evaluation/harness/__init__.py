"""Benchmarks through lm-eval (`pip install 'lit_gpt[eval]'`): the field's own tasks and scores, our model behind them.

`measure.py` is the measure, `find.py` turns names into tasks, `forms.py` reads local files of well-known benchmarks,
`model.py` answers lm-eval's three kinds of requests, `scores.py` converts what lm-eval reports into our results.
"""

from lit_gpt.evaluation.harness.measure import Harness

__all__ = ["Harness"]
