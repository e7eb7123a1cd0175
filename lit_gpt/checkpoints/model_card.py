"""Model cards: the README.md of a bundle (Mitchell et al. 2019, arXiv:1810.03993).

A card contains only what was recorded: the lineage (data, tokenizer, code), the checkpoint's step and best validation,
the run's configuration, the latest evaluation and its gate's verdict. Anything unknown (license, intended use) is a
line to fill in. The front matter follows Hugging Face (huggingface.co/docs/hub/model-cards).
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_gpt.checkpoints.provenance import without_paths
from lit_gpt.data.chat.template import has_template
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.models import GPTConfig

CARD = "README.md"
Opens = Literal["transformers", "llama.cpp", "torch", "lit_gpt"]
FILL_IN = "*to fill in*"
_MAX_SOURCES = 12

Rows = list[tuple[str, Any]]
"""Rows of a two-column table; those without a value are omitted."""
_MAX_SCORES = 4


@dataclass(frozen=True)
class CardFacts:
    """Facts for a card in addition to the model, tokenizer and lineage; each of them may be unknown."""

    name: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    """`step`, `monitor` and `value` of the checkpoint, and the run's `config`; see `training_facts`."""
    results: Sequence[Mapping[str, Any]] = ()
    """Results from an evaluation report, each with `title` and `scores`."""
    evaluated: str = ""
    """When it was evaluated, and by which plan."""
    gate: Mapping[str, Any] | None = None
    """`passed`, and `verdicts` with `key` and `reason`; None: these weights were not checked against a gate."""
    brief: Mapping[str, str] = field(default_factory=dict)
    """Title and answers of the project brief (`planning.framing.read_brief`); empty: there is none."""


def model_card(
    config: GPTConfig,
    tokenizer: Tokenizer | None,
    lineage: Mapping[str, Any],
    facts: CardFacts,
    dtype: str | None = None,
    opens: Opens = "transformers",
) -> str:
    """Return the model card as Markdown.

    Args:
        config: The model's configuration.
        tokenizer: The model's tokenizer; None: it has none.
        lineage: The model's lineage (`collect_lineage`).
        facts: Facts that are not in the lineage.
        dtype: Data type of the weights; None: they were quantized by lit_gpt.
        opens: The library that loads the model; "lit_gpt": only lit_gpt can load it.
    """
    origin = _plain(without_paths(lineage.get("imported_from") or lineage.get("init_from")))
    name = _plain(facts.name)
    parts = [
        _front_matter(config, origin, opens, facts.brief),
        f"# {name or 'A language model'}\n\n"
        f"A language model of {config.num_parameters():,} parameters in the architecture of {config.family}"
        f"{'' if origin is None else f', derived from `{origin}`'}, written by lit_gpt. This card contains what was "
        f"recorded; lines with {FILL_IN} must be completed before the model is published.",
        _section("Model", _model(config, tokenizer, dtype)),
        _section(
            "License and use",
            [
                ("license of the weights", FILL_IN),
                ("license of the training data", licences(lineage) or FILL_IN),
                *([] if origin is None else [(f"license of the original model, `{origin}`", FILL_IN)]),
                ("intended use", _intended_use(facts.brief) or FILL_IN),
                ("cost of a wrong answer", facts.brief.get("cost of a wrong answer")),
                ("out of scope, known harms", FILL_IN),
                ("contact", FILL_IN),
            ],
        ),
        _usage(name or "path/to/this/model", opens, tokenizer),
        _section("Data", data_rows(lineage)),
        _section("Training", training_rows(lineage, facts.training)),
        _evaluation(facts),
        _section("Lineage", lineage_rows(lineage)),
        run_config(facts.training.get("config")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _intended_use(brief: Mapping[str, str]) -> str:
    if not brief:
        return ""
    return (
        f'{brief["task"]} in {brief["languages"]}, {brief["use"]}, as in the project brief "{_plain(brief["title"])}"'
    )


def _front_matter(config: GPTConfig, origin: str | None, opens: Opens, brief: Mapping[str, str]) -> str:
    values: dict[str, Any] = {
        **({} if opens in ("llama.cpp", "torch") else {"library_name": opens}),
        "pipeline_tag": "text-generation",
        "tags": ["lit_gpt", config.family, *(["gguf"] if opens == "llama.cpp" else [])],
    }
    local = origin is None or origin.startswith(("runs/", ".")) or Path(origin).exists()
    if origin is not None and not local and re.fullmatch(r"[\w.-]+/[\w.-]+", origin):
        values["base_model"] = origin
    unknown = "# license: to fill in, such as apache-2.0\n"
    if brief:
        values["language"] = brief["languages"].replace(",", " ").split()
    else:
        unknown += "# language: to fill in, such as en\n"
    written = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"---\n{written}{unknown}---"


def _plain(name: Any) -> Any:
    """Return a name without line breaks and backticks, which would end a line or code span of the card."""
    return None if name is None else " ".join(str(name).replace("`", "'").split())


def _section(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows if value not in (None, "")]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines]) if lines else ""


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _model(config: GPTConfig, tokenizer: Tokenizer | None, dtype: str | None) -> Rows:
    experts = config.moe and f"{config.moe.num_experts_per_tok} of {config.moe.num_experts} per token"
    heads = f"{config.n_head}, {config.num_kv_heads} for keys and values, of size {config.head_dim}"
    tied = config.vocab_size * config.n_embd if config.tie_embeddings else 0  # a head that is the embedding
    rows: Rows = [
        ("family", config.family),
        ("parameters", config.num_parameters()),
        ("without embeddings", config.num_parameters(embeddings=False) - tied),
        ("active per token", config.num_parameters(active=True) if config.moe else None),
        ("layers, width", f"{config.n_layer}, {config.n_embd}"),
        ("heads", heads),
        ("experts", experts),
        ("context", f"{config.block_size:,} tokens"),
        ("sliding window", config.sliding_window and f"{config.sliding_window:,} tokens"),
        ("weights", dtype or "quantized; see quantization.json"),
    ]
    if tokenizer is None:
        return [*rows, ("tokenizer", "none in this folder")]
    chat = "yes, with the tokenizer" if has_template(tokenizer) else "none"
    kind = json.loads(tokenizer.backend.to_str())["model"]["type"]
    return [
        *rows,
        ("tokenizer", f"{kind}, {tokenizer.vocab_size:,} entries, end of text `{tokenizer.separator}`"),
        ("chat template", chat),
    ]


def _usage(name: str, opens: Opens, tokenizer: Tokenizer | None) -> str:
    command = f'python -m lit_gpt generate --model {shlex.quote(name)} --prompt "..."'
    if opens == "llama.cpp":
        command = f'llama-cli -m {shlex.quote(f"{name}.gguf")} -p "..."'
    blocks = [f"```sh\n{command}\n```"]
    if opens == "torch":
        load = f"torch.export.load({_quoted(f'{name}.pt2')}).module()(input_ids)  # (B, T) int64 -> (B, T, V) logits"
        blocks = [f"```python\nimport torch\n\nlogits = {load}\n```"]
    if opens == "transformers":
        lines = [
            "import transformers",
            "",
            f"model = transformers.AutoModelForCausalLM.from_pretrained({_quoted(name)})",
        ]
        if tokenizer is not None:
            lines.append(f"tokenizer = transformers.AutoTokenizer.from_pretrained({_quoted(name)})")
        blocks.append("```python\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(["## Run it", *blocks])


def _quoted(text: str) -> str:
    """Return a Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _evaluation(facts: CardFacts) -> str:
    lines = ["## Evaluation", ""]
    if not facts.results:
        return "\n".join([*lines, f"No evaluation is recorded for these weights. {FILL_IN}"])
    lines += [f"Measured {' '.join(facts.evaluated.split())}." if facts.evaluated else "", ""]
    lines += ["| measure | score | value | interval | items |", "|---|---|---|---|---|"]
    for result in facts.results:
        scores = list(result["scores"])
        lines += [_score_line(str(result["title"]), score) for score in scores[:_MAX_SCORES]]
    if facts.gate is None:
        return "\n".join([*lines, "", "These weights were not checked against a gate."])
    verdict = "passed" if facts.gate["passed"] else "**FAILED**, and exported anyway"
    lines += ["", f"Gate: {verdict}."]
    lines += [f"- `{_plain(line['key'])}`: {_plain(line['reason'])}" for line in facts.gate["verdicts"]]
    return "\n".join(lines)


def _score_line(title: str, score: Mapping[str, Any]) -> str:
    interval = score.get("interval")
    shown = "" if interval is None else f"{_number(interval['low'])} to {_number(interval['high'])}"
    name = f"{score['name']} ({score['unit']})" if score.get("unit") else score["name"]
    return f"| {_cell(title)} | {_cell(name)} | {_number(score['value'])} | {shown} | {score['count']:,} |"


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4g}"


def data_rows(lineage: Mapping[str, Any]) -> Rows:
    """Return rows on the training data: its sources and the sizes of its splits."""
    corpus = lineage.get("corpus")
    if not corpus:
        return [("training data", FILL_IN)]
    rows: Rows = [("data module", str(corpus.get("class", "")).rpartition(".")[2])]
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
    """Return the licenses declared by the sources of a corpus, and the sources without one; "" if none has any."""
    corpus = lineage.get("corpus") or {}
    found = sorted({str(part["license"]) for part in _with_key(corpus, "license")})
    sources = [source for part in _with_key(corpus, "sources") for source in part["sources"] or ()]
    undeclared = [_source(source) for source in sources if not (isinstance(source, Mapping) and source.get("license"))]
    if found and undeclared:
        more = len(undeclared) - _MAX_SOURCES
        named = ", ".join(undeclared[:_MAX_SOURCES]) + (f" and {more:,} more" if more > 0 else "")
        found.append(f"{FILL_IN} of {named}")
    return "; ".join(found)


def _with_key(value: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """Yield every nested mapping that contains a key, outermost first."""
    if isinstance(value, Mapping):
        if key in value:
            yield value
        for inner in value.values():
            yield from _with_key(inner, key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _with_key(inner, key)


def training_rows(lineage: Mapping[str, Any], training: Mapping[str, Any]) -> Rows:
    """Return rows on the training: objective, steps, batch size, optimizer, schedule and best validation."""
    corpus = lineage.get("corpus") or {}
    step, batch, block = training.get("step"), corpus.get("global_batch_size"), corpus.get("block_size")
    tokens = f"at most {step * batch * block:,}, including padding" if step and batch and block else None
    config = training.get("config") or {}
    model = config.get("model") or {}
    arguments = model.get("init_args") or {}
    optimizer = arguments.get("optimizer") or {}
    schedule = arguments.get("schedule") or {}
    value = training.get("value")
    which = ", before the weights were quantized" if lineage.get("quantized") else ""
    return [
        ("objective", str(model.get("class_path", "")).rpartition(".")[2]),
        ("started from", without_paths(lineage.get("init_from"))),
        ("optimizer steps", step),
        ("training tokens", tokens),
        ("batch size", batch and block and f"{batch:,} sequences of {block:,} tokens"),
        ("optimizer", _called(optimizer)),
        ("schedule", _called(schedule)),
        ("precision", lineage.get("precision") or (config.get("trainer") or {}).get("precision")),
        (f"best `{training.get('monitor')}`", None if value is None else f"{value:.4f}{which}"),
    ]


def _called(part: Any) -> str:
    """Return a class_path with init_args as a call: `AdamW(lr=0.001, ...)`."""
    if not isinstance(part, Mapping) or "class_path" not in part:
        return ""
    arguments = ", ".join(f"{key}={value}" for key, value in (part.get("init_args") or {}).items())
    return f"{str(part['class_path']).rpartition('.')[2]}({arguments})"


def lineage_rows(lineage: Mapping[str, Any]) -> Rows:
    """Return rows on the lineage: hashes of the inputs, the original model, quantization and software versions."""
    hashes = [(name.removesuffix("_sha256"), f"`{lineage[name]}`") for name in lineage if name.endswith("_sha256")]
    code = ", ".join(f"{name} {value}" for name, value in (lineage.get("code") or {}).items() if value)
    rows = [(f"SHA-256 of {name}", value) for name, value in hashes if value != "`None`"]
    rounding = dict(lineage.get("quantized") or {})
    groups = f" in groups of {rounding['group_size']}" if rounding.get("group_size") else ""
    quantized = f"{rounding['method']}{groups}, from `{rounding['source']}`" if rounding else None
    imported = ("imported from", without_paths(lineage.get("imported_from")))
    return [*rows, imported, ("quantized", quantized), ("code", code)]


def run_config(config: Mapping[str, Any] | None) -> str:
    """Return the complete configuration of the run as a collapsed section."""
    if not config:
        return ""
    written = yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip()
    longest = max(map(len, re.findall("`+", written)), default=0)
    fence = "`" * max(3, longest + 1)  # a prompt or template in it may contain a fence
    return f"<details>\n<summary>The run's configuration</summary>\n\n{fence}yaml\n{written}\n{fence}\n\n</details>"
