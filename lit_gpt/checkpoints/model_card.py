"""README.md of a bundle: what is known of a model, for whoever meets it next (Mitchell et al. 2019, arXiv:1810.03993).

Everything in it was recorded: the lineage (data, tokenizer, code), the checkpoint's step and best validation, the
run's configuration, the newest evaluation and the verdict of its gate. What nobody recorded (licence, intended use) is
a line to fill in. The front matter is Hugging Face's (huggingface.co/docs/hub/model-cards).
"""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_gpt.checkpoints.card_tables import FILL_IN, Rows, data_rows, licences, lineage_rows, run_config, training_rows
from lit_gpt.checkpoints.lineage import without_paths
from lit_gpt.checkpoints.runs import read_best
from lit_gpt.checkpoints.step import CHECKPOINTS, step_of
from lit_gpt.data.chat.template import has_template
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.models import GPTConfig

CARD = "README.md"
Opens = Literal["transformers", "llama.cpp", "torch", "lit_gpt"]
_MAX_SCORES = 4


@dataclass(frozen=True)
class CardFacts:
    """What a card says beyond model, tokenizer and lineage; all of it may be unknown."""

    name: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    """`step`, `monitor`, `value`, and `config`, the run's; see `training_facts`."""
    results: Sequence[Mapping[str, Any]] = ()
    """Of an evaluation's report: each with `title` and `scores`."""
    evaluated: str = ""
    """When, and by which plan."""
    gate: Mapping[str, Any] | None = None
    """`passed`, and `verdicts` with `key` and `reason`; None: none was held against these weights."""


def training_facts(checkpoint: Path) -> dict[str, Any]:
    """Return what lies beside a checkpoint of a run: its step, the best validation and the run's configuration.

    Args:
        checkpoint: As `ModelSource.path`; {} comes of a folder that is no checkpoint in a run.
    """
    if checkpoint.parent.name != CHECKPOINTS:
        return {}
    facts: dict[str, Any] = {"step": step_of(checkpoint)}
    best = read_best(checkpoint.parent)
    if best is not None and best["checkpoint"] == checkpoint.name:
        facts |= {"monitor": best["monitor"], "value": best["value"]}
    config = checkpoint.parent.parent / "config.yaml"
    if config.is_file():
        facts["config"] = without_paths(yaml.safe_load(config.read_text(encoding="utf-8")))
    return facts


def model_card(
    config: GPTConfig,
    tokenizer: Tokenizer | None,
    lineage: Mapping[str, Any],
    facts: CardFacts,
    dtype: str | None = None,
    opens: Opens = "transformers",
) -> str:
    """Return the card.

    Args:
        config: The model's.
        tokenizer: None: it has none.
        lineage: See `collect_lineage`.
        facts: What else is known.
        dtype: Of the weights; None: they are quantised by lit_gpt.
        opens: What opens it, beside lit_gpt.
    """
    origin = _plain(without_paths(lineage.get("imported_from") or lineage.get("init_from")))
    name = _plain(facts.name)
    parts = [
        _front_matter(config, origin, opens),
        f"# {name or 'A language model'}\n\n"
        f"A language model of {config.num_parameters():,} parameters in the architecture of {config.family}"
        f"{'' if origin is None else f', made from `{origin}`'}, written by lit_gpt. This card says what was "
        f"recorded; lines with {FILL_IN} are for whoever publishes the model.",
        _section("Model", _model(config, tokenizer, dtype)),
        _section(
            "Licence and use",
            [
                ("licence of the weights", FILL_IN),
                ("licence of the training data", licences(lineage) or FILL_IN),
                *([] if origin is None else [(f"licence of `{origin}`, which it comes from", FILL_IN)]),
                ("intended use", FILL_IN),
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


def _front_matter(config: GPTConfig, origin: str | None, opens: Opens) -> str:
    values: dict[str, Any] = {
        **({} if opens in ("llama.cpp", "torch") else {"library_name": opens}),
        "pipeline_tag": "text-generation",
        "tags": ["lit_gpt", config.family, *(["gguf"] if opens == "llama.cpp" else [])],
    }
    local = origin is None or origin.startswith(("runs/", ".")) or Path(origin).exists()
    if origin is not None and not local and re.fullmatch(r"[\w.-]+/[\w.-]+", origin):
        values["base_model"] = origin
    written = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"---\n{written}# license: to fill in, such as apache-2.0\n# language: to fill in, such as en\n---"


def _plain(name: Any) -> Any:
    """A name that ends no line and no code span."""
    return None if name is None else " ".join(str(name).replace("`", "'").split())


def _section(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows if value not in (None, "")]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines]) if lines else ""


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _model(config: GPTConfig, tokenizer: Tokenizer | None, dtype: str | None) -> Rows:
    experts = config.moe and f"{config.moe.num_experts_per_tok} of {config.moe.num_experts} a token"
    heads = f"{config.n_head}, {config.num_kv_heads} for keys and values, of size {config.head_dim}"
    rows: Rows = [
        ("family", config.family),
        ("parameters", config.num_parameters()),
        ("without embeddings", config.num_parameters(embeddings=False)),
        ("active a token", config.num_parameters(active=True) if config.moe else None),
        ("layers, width", f"{config.n_layer}, {config.n_embd}"),
        ("heads", heads),
        ("experts", experts),
        ("context", f"{config.block_size:,} tokens"),
        ("sliding window", config.sliding_window and f"{config.sliding_window:,} tokens"),
        ("weights", dtype or "quantised; see quantization.json"),
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
    """A string as Python reads it, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _evaluation(facts: CardFacts) -> str:
    lines = ["## Evaluation", ""]
    if not facts.results:
        return "\n".join([*lines, f"None is recorded beside these weights. {FILL_IN}"])
    lines += [f"Measured {' '.join(facts.evaluated.split())}." if facts.evaluated else "", ""]
    lines += ["| measure | score | value | interval | items |", "|---|---|---|---|---|"]
    for result in facts.results:
        scores = list(result["scores"])
        lines += [_score_line(str(result["title"]), score) for score in scores[:_MAX_SCORES]]
    if facts.gate is None:
        return "\n".join([*lines, "", "These weights were held against no gate."])
    verdict = "passed" if facts.gate["passed"] else "**FAILED**, and exported all the same"
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
