"""The extra that `prepare` needs, and the sentence that says how to get it."""

import importlib
from typing import Any

from lit_gpt.errors import UserError


def need(module: str, purpose: str) -> Any:
    """Imports a module of the extra `data`.

    Args:
        module: What to import: "trafilatura".
        purpose: What it is needed for: "reading web pages".

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise UserError(
            f"{purpose} needs {missing}, which is not installed; "
            "pip install 'lit_gpt[data]' (in a checkout: pip install -e '.[data]')"
        ) from error
