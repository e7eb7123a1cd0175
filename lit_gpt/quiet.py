"""Filters for messages of libraries that a user cannot act on.

Each entry names the library, the message and why it can be dropped. All other log messages and warnings are shown. Only
the command line calls `silence_libraries`: a project that imports this package keeps its own settings.
"""

import logging
import os
import warnings

_LOG_MESSAGES = {
    # CUDA extensions of torchao that this machine's torch cannot load; its Python code is used instead.
    "torchao": ("Failed to load", "Skipping import of cpp extensions"),
    # torchao registers enums, which is unnecessary in newer versions of torch.
    "torch.utils._pytree": ("is an Enum subclass",),
    # An optional CPU kernel that bitsandbytes would download; it has a slower built-in one.
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),
    # Advertisements at every start.
    "lightning.pytorch.utilities.rank_zero": ("Tip:",),
}
_WARNINGS = (
    # torch 2.13 deprecates a name that Lightning 2.6 uses.
    (".*LeafSpec.*", Warning),
    # Runs shorter than log_every_n_steps log their loss at the end.
    (r"The number of training batches \(\d+\) is smaller than the logging interval.*", UserWarning),
)
_ENVIRONMENT = {
    # Progress bars of individual shards, in addition to our own.
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


class _DropMessages(logging.Filter):
    """Drops records whose message contains any of the given texts."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__()
        self.texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in self.texts)


def silence_libraries() -> None:
    """Install the filters in this process; environment variables set by the user take precedence."""
    for name, texts in _LOG_MESSAGES.items():
        logging.getLogger(name).addFilter(_DropMessages(texts))
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
