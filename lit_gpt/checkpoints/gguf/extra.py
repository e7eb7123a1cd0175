"""The `gguf` package, which comes with the extra `export`."""

from types import ModuleType

from lit_gpt.errors import UserError


def import_gguf() -> ModuleType:
    """Import the package.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UserError("GGUF files need the package gguf: pip install -e '.[export]'") from error
    return gguf
