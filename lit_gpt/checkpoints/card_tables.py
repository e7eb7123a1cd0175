"""The parts of a model card that come from the lineage and from the run's configuration."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from lit_gpt.checkpoints.lineage import without_paths

FILL_IN = "*to fill in*"
_MAX_SOURCES = 12

Rows = list[tuple[str, Any]]
"""Of a table of two columns; a row without a value is left out."""


def data_rows(lineage: Mapping[str, Any]) -> Rows:
    """What it was trained on."""
    corpus = lineage.get("corpus")
    if not corpus:
        return [("training data", FILL_IN)]
    rows: Rows = [("read by", str(corpus.get("class", "")).rpartition(".")[2])]
    for part in _with_key(corpus, "splits"):
        sources = [_source(source) for source in part.get("sources") or ()]
        more = len(sources) - _MAX_SOURCES
        shown = ", ".join(sources[:_MAX_SOURCES]) + (f" and {more:,} more" if more > 0 else "")
        rows.append((f"sources{f' ({len(sources):,})' if len(sources) > 1 else ''}", shown))
        for split, numbers in part["splits"].items():
            if isinstance(numbers, Mapping):
                rows.append((f"`{split}`", _numbers(numbers)))
    return rows


def _source(source: Any) -> str:
    if not isinstance(source, Mapping):
        return str(source)
    name = source.get("name") or source.get("path") or source.get("kind", "")
    details = [f"{source['num_files']:,} files"] if source.get("num_files") else []
    details += [str(source["license"])] if source.get("license") else []
    return f"{name} ({', '.join(details)})" if details else str(name)


def _numbers(numbers: Mapping[str, Any]) -> str:
    counted = {key.removeprefix("num_"): value for key, value in numbers.items() if isinstance(value, int)}
    return ", ".join(f"{value:,} {name}" for name, value in counted.items())


def licences(lineage: Mapping[str, Any]) -> str:
    """Licences as declared for the sources of a prepared corpus, and which declare none; empty: none does."""
    corpus = lineage.get("corpus") or {}
    found = sorted({str(part["license"]) for part in _with_key(corpus, "license")})
    sources = [source for part in _with_key(corpus, "sources") for source in part["sources"] or ()]
    silent = [_source(source) for source in sources if not (isinstance(source, Mapping) and source.get("license"))]
    if found and silent:
        more = len(silent) - _MAX_SOURCES
        named = ", ".join(silent[:_MAX_SOURCES]) + (f" and {more:,} more" if more > 0 else "")
        found.append(f"{FILL_IN} of {named}")
    return "; ".join(found)


def _with_key(value: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """Every mapping with the key, at any depth."""
    if isinstance(value, Mapping):
        if key in value:
            yield value
        for inner in value.values():
            yield from _with_key(inner, key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _with_key(inner, key)


def training_rows(lineage: Mapping[str, Any], training: Mapping[str, Any]) -> Rows:
    """How it was trained."""
    corpus = lineage.get("corpus") or {}
    step, batch, block = training.get("step"), corpus.get("global_batch_size"), corpus.get("block_size")
    tokens = f"{step * batch * block:,} at most, padding included" if step and batch and block else None
    config = training.get("config") or {}
    model = config.get("model") or {}
    arguments = model.get("init_args") or {}
    optimizer = arguments.get("optimizer") or {}
    schedule = arguments.get("schedule") or {}
    value = training.get("value")
    which = ", before the weights were quantised" if lineage.get("quantized") else ""
    return [
        ("objective", str(model.get("class_path", "")).rpartition(".")[2]),
        ("started from", without_paths(lineage.get("init_from"))),
        ("optimizer steps", step),
        ("tokens read", tokens),
        ("batch", batch and block and f"{batch:,} sequences of {block:,} tokens"),
        ("optimizer", _called(optimizer)),
        ("schedule", _called(schedule)),
        ("precision", (config.get("trainer") or {}).get("precision")),
        (f"best `{training.get('monitor')}`", None if value is None else f"{value:.4f}{which}"),
    ]


def _called(part: Any) -> str:
    """`AdamW(lr=0.001, ...)` of a class_path with init_args."""
    if not isinstance(part, Mapping) or "class_path" not in part:
        return ""
    arguments = ", ".join(f"{key}={value}" for key, value in (part.get("init_args") or {}).items())
    return f"{str(part['class_path']).rpartition('.')[2]}({arguments})"


def lineage_rows(lineage: Mapping[str, Any]) -> Rows:
    """The hashes of what made it, and the code's versions."""
    hashes = [(name.removesuffix("_sha256"), f"`{lineage[name]}`") for name in lineage if name.endswith("_sha256")]
    code = ", ".join(f"{name} {value}" for name, value in (lineage.get("code") or {}).items() if value)
    rows = [(f"SHA-256 of {name}", value) for name, value in hashes if value != "`None`"]
    rounding = dict(lineage.get("quantized") or {})
    groups = f" in groups of {rounding['group_size']}" if rounding.get("group_size") else ""
    quantized = f"{rounding['method']}{groups}, from `{rounding['source']}`" if rounding else None
    imported = ("imported from", without_paths(lineage.get("imported_from")))
    return [*rows, imported, ("quantised", quantized), ("code", code)]


def run_config(config: Mapping[str, Any] | None) -> str:
    """The run's whole configuration, folded away."""
    if not config:
        return ""
    written = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip()
    longest = max(map(len, re.findall("`+", written)), default=0)
    fence = "`" * max(3, longest + 1)  # a prompt or a template in it may hold a fence of its own
    return f"<details>\n<summary>The run's configuration</summary>\n\n{fence}yaml\n{written}\n{fence}\n\n</details>"
