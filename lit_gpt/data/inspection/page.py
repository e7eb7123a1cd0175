"""Render the windows of a batch as an HTML page."""

from collections.abc import Iterator

from lit_gpt.data.inspection.view import Report, Token, Window
from lit_gpt.pages import render_page

_HUES = (210, 28, 145, 275, 340, 180, 55, 0)


def render(report: Report) -> str:
    """Return the report as a complete HTML document."""
    return render_page("inspector.html", report=report, hue=_hue, learned_runs=_learned_runs)


def _hue(document: int) -> int:
    return _HUES[document % len(_HUES)]


def _learned_runs(window: Window) -> Iterator[tuple[int, int, int]]:
    """Yield (first token, number of tokens, document) of each run of target tokens within one document."""
    run: list[Token] = []
    for token in [*window.tokens, None]:
        if token is not None and token.learned and (not run or run[-1].document == token.document):
            run.append(token)
            continue
        if run:
            yield run[0].index, run[-1].index + 1 - run[0].index, run[0].document
        run = [token] if token is not None and token.learned else []
