"""What `prepare --explain` prints: the sources and steps that there are, and each with its options."""

import inspect
from typing import Any

from lit_gpt.data.pipeline.registry import step_class, step_classes
from lit_gpt.data.pipeline.sources import KINDS
from lit_gpt.instantiate import import_object, parameters
from lit_gpt.suggest import unknown_name

_SOURCES_HEAD = """Sources: a list; each entry names one kind, its options, and what you declare about it
(name, license, language).

sources:
  - files: my_texts/**/*.txt
    license: CC-BY-4.0
  - hub: {path: roneneldan/TinyStories, split: train, streaming: true}
    name: tinystories
"""
_STEPS_HEAD = """Steps: a list of `name: {options}`, in the order in which they run.

steps:
  - fix_encoding: {}
  - length: {min_chars: 200}
"""


def explanation(topic: str) -> str:
    """Returns the words about `sources`, `steps`, or one of them by name; about `topics`, the list of them.

    Raises:
        UserError: naming the nearest topic.
    """
    steps = step_classes()
    if topic == "sources":
        lines = [f"  {name:<20} {_summary(_source_class(name))}" for name in KINDS]
        return "\n".join([_SOURCES_HEAD, *lines, "", "`--explain <kind>` shows one with its options."])
    if topic == "steps":
        lines = [f"  {name:<20} {_summary(step_class(name))}" for name in steps]
        return "\n".join([_STEPS_HEAD, *lines, "", "`--explain <step>` shows one with its options."])
    if topic == "topics":
        words = {"sources": KINDS, "steps": steps}
        return "\n".join(["Topics of --explain:", *(f"  {name}, or one: {', '.join(words[name])}" for name in words)])
    if topic in KINDS:
        return _full(topic, _source_class(topic), is_step=False)
    if topic in steps:
        return _full(topic, step_class(topic), is_step=True)
    raise unknown_name("topic", topic, ["topics", "sources", "steps", *KINDS, *steps], "of --explain")


def _source_class(kind: str) -> type:
    target: type = import_object(KINDS[kind].replace(":", "."), "source", "data")
    return target


def _summary(target: type) -> str:
    return (inspect.getdoc(target) or "").strip().split("\n\n")[0].replace("\n", " ")


def _full(name: str, target: type, is_step: bool) -> str:
    options = parameters(target)
    if is_step:
        set_options = ", ".join(
            f"{key}: {_written(p.default)}" for key, p in options.items() if p.default is not p.empty
        )
        example = f"steps:\n  - {name}: {{{set_options}}}"
    else:
        lines = [f"    {key}: {_written(p.default)}" for key, p in options.items() if key != name]
        example = "\n".join([f"sources:\n  - {name}: ...", *lines])
    return f"{name}\n\n{inspect.getdoc(target) or ''}\n\nAs it stands in a recipe, with its defaults:\n\n{example}"


def _written(value: Any) -> str:
    """Returns a default as YAML writes it."""
    import json

    if value is inspect.Parameter.empty:
        return "..."
    try:
        return json.dumps(value)
    except TypeError:
        return str(value)
