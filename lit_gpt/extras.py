"""Optional dependencies: imported where they are used, with an error that names the missing one and its extra."""

import importlib
import importlib.metadata
import platform
import sys
from typing import Any

from lit_gpt.errors import UserError

STACK = ("torch", "lightning", "torchmetrics", "datasets", "transformers", "tokenizers", "jsonargparse", "tensorboard")
"""Libraries whose versions should be in every bug report."""


def versions() -> str:
    """Return the versions of this package, Python and the main libraries on one line."""
    found = [installed_version("lit_gpt") or "unknown", f"Python {platform.python_version()}"]
    return ", ".join([*found, *(f"{name} {installed_version(name) or 'missing'}" for name in STACK)])


def installed_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def need(module: str, extra: str, purpose: str) -> Any:
    """Import and return an optional module.

    Args:
        module: Module to import, such as "trafilatura".
        extra: Extra of this package that installs it, such as "data".
        purpose: What needs it, such as "reading web pages"; starts the error message.

    Raises:
        UserError: If it is not installed, or a user's file shadows a standard library module that it needs.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        if missing in sys.stdlib_module_names:  # a user's file shadows a standard library module
            hidden = getattr(sys.modules.get(missing), "__file__", None) or f"{missing}.py"
            raise UserError(
                f"{purpose} needs Python's module {missing}, shadowed by {hidden}; rename that file"
            ) from error
        raise UserError(f"{purpose} needs {missing}, which is not installed; {remedy(extra)}") from error


def remedy(extra: str) -> str:
    """Return the commands that install an extra."""
    return f"in the checkout: pip install -e '.[{extra}]'"
