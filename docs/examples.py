"""Show the examples of docstrings as code on the page of the Python API."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Reads a section `Example:` as griffe reads `Examples:`, whose doctest lines become a code block."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section before the docstring is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
