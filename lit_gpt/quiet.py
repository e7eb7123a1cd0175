"""A quiet screen: what libraries print that tells the user nothing they could act on.

Each entry names the library, the message and why it may be dropped. Everything else that a library logs or warns about
is shown. Only the command line calls `silence_libraries`: a project that imports this package keeps its own settings.
"""

import logging
import os
import warnings

_LOG_MESSAGES = {
    # CUDA extensions of torchao that this machine's torch cannot load; its Python code is used instead.
    "torchao": ("Failed to load", "Skipping import of cpp extensions"),
    # torchao registers enums, which newer versions of torch support without it.
    "torch.utils._pytree": ("is an Enum subclass",),
    # An optional CPU kernel that bitsandbytes would download; it has a slower one built in.
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),
    # Advertisements at every start.
    "lightning.pytorch.utilities.rank_zero": ("Tip:",),
}
_WARNINGS = (
    # torch 2.13 deprecates a name that Lightning 2.6 uses.
    (".*LeafSpec.*", Warning),
)
_ENVIRONMENT = {
    # Progress bars of single shards, in addition to our own.
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


class _DropMessages(logging.Filter):
    """Drop records whose message contains one of some texts."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__()
        self.texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in self.texts)


def silence_libraries() -> None:
    """Install the filters in this process; what the user has set in the environment wins."""
    for name, texts in _LOG_MESSAGES.items():
        logging.getLogger(name).addFilter(_DropMessages(texts))
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
