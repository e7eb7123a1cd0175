"""The libraries around this package: optional ones are imported where used, and an error names the missing one."""

import importlib
import importlib.metadata
import platform
import sys
from typing import Any

from lit_gpt.errors import UserError

STACK = ("torch", "lightning", "torchmetrics", "datasets", "transformers", "tokenizers", "jsonargparse", "tensorboard")
"""The libraries whose versions belong in every report of a problem."""


def versions() -> str:
    """Return the version of this package, then those of Python and the stack, in one line."""
    found = [installed_version("lit_gpt") or "unknown", f"Python {platform.python_version()}"]
    return ", ".join([*found, *(f"{name} {installed_version(name) or 'missing'}" for name in STACK)])


def installed_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def need(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an extra.

    Args:
        module: What to import: "trafilatura".
        extra: Which of this package's extras brings it: "data".
        purpose: What it is needed for: "reading web pages".

    Raises:
        UserError: If it is not installed, or a file of the user hides a module that it needs.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        if missing in sys.stdlib_module_names:  # a file of the user's hides a module of Python itself
            hidden = getattr(sys.modules.get(missing), "__file__", None) or f"{missing}.py"
            raise UserError(f"{purpose} needs Python's module {missing}, which {hidden} hides; rename it") from error
        raise UserError(f"{purpose} needs {missing}, which is not installed; {remedy(extra)}") from error


def remedy(extra: str) -> str:
    """Return how to install an extra."""
    return f"pip install 'lit_gpt[{extra}]' (in a checkout: pip install -e '.[{extra}]')"
