"""Guards of the server: they inspect incoming and outgoing texts, redact or block them, and count their findings.

A YAML file lists them, in the order in which a text passes them:

    guards:
      - class_path: PIIGuard                    # built-in by name, custom as package.module.Class
        init_args: {input: redact, output: redact}
      - class_path: BlockListGuard
        init_args: {file: blocked.txt}
      - class_path: ClassifierGuard
        init_args: {class_path: my_package.Toxicity, threshold: 0.8}

A blocked request is answered with 400 and the code `content_filter`; a blocked answer ends with the finish_reason
`content_filter`. If a guard fails, nothing passes.
"""

from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.instantiate import instantiate, read_yaml
from lit_gpt.serving.guards.base import Action, Guard, Passed, TextGuard
from lit_gpt.serving.guards.detectors import BlockListGuard, ClassifierGuard, PIIGuard

GUARDS: dict[str, type[Guard]] = {guard.__name__: guard for guard in (PIIGuard, BlockListGuard, ClassifierGuard)}

__all__ = [
    "GUARDS",
    "Action",
    "BlockListGuard",
    "ClassifierGuard",
    "Guard",
    "PIIGuard",
    "Passed",
    "TextGuard",
    "load_guards",
]


def load_guards(file: str | Path) -> list[Guard]:
    """Construct the guards of a YAML file, in order.

    Raises:
        UserError: If the file cannot be read, or a guard in it is unknown or does not accept its arguments.
    """
    content = read_yaml(file, "a YAML file of guards")
    if not isinstance(content, dict) or list(content) != ["guards"] or not isinstance(content["guards"], list):
        raise UserError(f"{file}: it has one field, `guards`, with a list of {{class_path: ..., init_args: ...}}")
    if not content["guards"]:
        raise UserError(f"{file}: guards is empty; name one, or omit --guards")
    try:
        return [
            instantiate(entry, "guard", f"guard {number}", GUARDS, Guard)
            for number, entry in enumerate(content["guards"], start=1)
        ]
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
