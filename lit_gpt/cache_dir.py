"""The folder for what can be computed again: prepared corpora, tokenizers, choices of kernels."""

import os
from pathlib import Path

from lit_gpt.checks import local_path
from lit_gpt.errors import UserError


def find_cache_dir(cache_dir: str | None = None) -> Path:
    """Return the option `cache_dir`, else `$LIT_GPT_CACHE`, else `$XDG_CACHE_HOME/lit_gpt`, else `~/.cache/lit_gpt`.

    Raises:
        UserError: it is an address such as `s3://bucket/cache`.
    """
    if cache_dir is not None:
        return local_path("cache_dir", cache_dir)
    if own := os.environ.get("LIT_GPT_CACHE"):
        return local_path("LIT_GPT_CACHE", own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return local_path("XDG_CACHE_HOME", xdg) / "lit_gpt"
    return Path("~/.cache/lit_gpt").expanduser()


def make_cache_dir(path: Path) -> None:
    """Create the cache folder if it is missing.

    Raises:
        UserError: if it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cache_dir {path} cannot be created ({error.strerror}); set it (or LIT_GPT_CACHE) to a folder that can be "
            "written"
        ) from error
