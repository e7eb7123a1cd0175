"""Self-contained HTML pages: data card, inspector, evaluation report, comparison.

All share one Jinja2 environment, one style sheet (`templates/style.css`) and one set of charts (`charts.py` computes
coordinates, `templates/charts.html` draws them). A page has no script and loads nothing; its content security policy
makes the browser reject anything that a text might inject. Every value that a template prints is escaped, and
characters that would hide or reorder text are spelled out, because corpora and model outputs may contain anything.
"""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lit_gpt.pages import charts, text

__all__ = ["render_page"]


def render_page(template: str, **values: Any) -> str:
    """Return a complete HTML document.

    Args:
        template: A file in `templates/`, such as `data_card.html`.
        **values: Values for the template.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("lit_gpt.pages"),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=text.human_bytes,
        count=text.abbreviated,
        counted=text.counted,
        percent=text.percent,
        score=text.score,
        visible=text.visible,
        words=text.words,
        yaml=text.yaml_text,
        thousands=lambda value: f"{value:,}",
    )
    environment.globals.update(charts=charts, signed=text.signed_score, interval=text.interval_words)
    return environment


def _finalize(value: Any) -> Any:
    """Spell out hidden characters in whatever a template prints, unless it is already HTML."""
    return text.visible(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value
