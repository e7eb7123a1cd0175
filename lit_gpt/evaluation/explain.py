"""What measures there are, in words: `evaluate --explain`."""

import inspect

from lit_gpt.evaluation import MEASURES
from lit_gpt.evaluation.plan import measure_class


def explanation(topic: str) -> str:
    """Return the list of measures, or one of them with its options.

    Args:
        topic: `topics` or `measures` for the list; a short name, or a measure's class_path.

    Raises:
        UserError: There is no such measure.
    """
    if topic in ("topics", "measures"):
        width = max(map(len, MEASURES))
        lines = [f"  {name:{width}}  {_document(name).splitlines()[0]}" for name in MEASURES]
        example = "measures:\n  - class_path: LanguageModeling\n    init_args: {texts: {files: heldout.txt}}"
        return (
            "Measures, by the name that a plan's class_path gives them:\n\n"
            + "\n".join(lines)
            + f"\n\nOne of them with its options: evaluate --explain LanguageModeling\n\n{example}"
        )
    target = measure_class(topic)
    defaults = [
        f"  {name}: {parameter.default!r}"
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.default is not parameter.empty
    ]
    return f"{topic}: {_document(topic)}\n\nDefaults:\n" + "\n".join(defaults)


def _document(name: str) -> str:
    return inspect.getdoc(measure_class(name)) or ""
