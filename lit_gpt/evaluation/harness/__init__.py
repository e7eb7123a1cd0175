"""Benchmarks through lm-eval (`pip install 'lit_gpt[eval]'`): the field's own tasks and scores, our model behind them.

`model.py` answers lm-eval's three kinds of requests, `find.py` turns names into tasks, `forms.py` reads the files that
people keep on disk, `scores.py` turns what lm-eval says into our results, `measure.py` is the measure.
"""

from lit_gpt.evaluation.harness.measure import Harness

__all__ = ["Harness"]
