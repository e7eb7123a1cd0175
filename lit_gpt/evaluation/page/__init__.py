"""report.html and comparison.html: one page each that needs nothing else."""

from lit_gpt.evaluation.page.comparison import comparison_page
from lit_gpt.evaluation.page.report import report_page

__all__ = ["comparison_page", "report_page"]
