"""Guards around the server: what goes in and out is looked at, changed or stopped, and counted.

A file names them, in the order in which a text passes them:

    guards:
      - class_path: PIIGuard                    # one of ours by its name, yours as package.module.Class
        init_args: {input: redact, output: redact}
      - class_path: BlockListGuard
        init_args: {file: blocked.txt}
      - class_path: ClassifierGuard
        init_args: {class_path: my_package.Toxicity, threshold: 0.8}

A request that is stopped is answered with 400 and the code `content_filter`; an answer that is stopped ends with the
finish_reason `content_filter`. A guard that fails lets nothing pass.
"""

from lit_gpt.serving.guards.base import Action, Guard, Passed, TextGuard
from lit_gpt.serving.guards.block_list import BlockListGuard
from lit_gpt.serving.guards.chain import GuardChain, OutputGuard
from lit_gpt.serving.guards.classifier import ClassifierGuard
from lit_gpt.serving.guards.config import load_guards
from lit_gpt.serving.guards.pii import PIIGuard

__all__ = [
    "Action",
    "BlockListGuard",
    "ClassifierGuard",
    "Guard",
    "GuardChain",
    "OutputGuard",
    "PIIGuard",
    "Passed",
    "TextGuard",
    "load_guards",
]
