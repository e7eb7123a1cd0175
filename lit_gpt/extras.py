"""Libraries that only some rooms need: imported where they are used, and named with their remedy where they are not."""

import importlib
from typing import Any

from lit_gpt.errors import UserError


def need(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an extra.

    Args:
        module: What to import: "trafilatura".
        extra: Which of this package's extras brings it: "data".
        purpose: What it is needed for: "reading web pages".

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise UserError(f"{purpose} needs {missing}, which is not installed; {remedy(extra)}") from error


def remedy(extra: str) -> str:
    """How to install an extra."""
    return f"pip install 'lit_gpt[{extra}]' (in a checkout: pip install -e '.[{extra}]')"
