"""Files of the Hugging Face Hub, and what is wrong where they cannot be had."""

from collections.abc import Sequence
from pathlib import Path


class HubError(Exception):
    """The reason why the Hub's files cannot be had, for the user."""


def download_snapshot(name: str, allow_patterns: Sequence[str], ignore_patterns: Sequence[str] | None = None) -> Path:
    """Download files of a model on the Hub, unless they are in its cache, and return their folder.

    Args:
        name: Name of the model, such as org/name.
        allow_patterns: Names of the files, as shell patterns.
        ignore_patterns: Patterns of files to leave out.

    Raises:
        HubError: The Hub cannot be reached, or has no such model.
    """
    import huggingface_hub

    allowed, ignored = list(allow_patterns), None if ignore_patterns is None else list(ignore_patterns)
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=allowed, ignore_patterns=ignored))
    except Exception as error:
        # By name: the library has exchanged what it connects with, for errors of other classes, more than once.
        lost = any(base.__name__ in ("TransportError", "ConnectionError") for base in type(error).__mro__)
        if lost or isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
            raise HubError("it cannot be reached from here") from error
        if isinstance(error, (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError)):
            raise HubError(str(error).strip().splitlines()[0]) from error
        raise
