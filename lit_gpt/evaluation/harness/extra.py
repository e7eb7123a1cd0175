"""The extra that the harness needs, and the sentence that says how to get it."""

import importlib
from typing import Any

from lit_gpt.errors import UserError


def need(module: str, purpose: str) -> Any:
    """Import a module of the extra `eval`.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise UserError(
            f"{purpose} needs {missing}, which is not installed; pip install 'lit_gpt[eval]' (in a checkout: "
            "pip install -e '.[eval]')"
        ) from error
