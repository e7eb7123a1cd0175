"""The extra that adapters need, and the sentence that says how to get it."""

import importlib
from typing import Any

from lit_gpt.errors import UserError


def need(module: str, purpose: str) -> Any:
    """Imports a module of the extra `adapters`.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs {module}, which is not installed; pip install 'lit_gpt[adapters]' (in a checkout: "
            "pip install -e '.[adapters]')"
        ) from error
