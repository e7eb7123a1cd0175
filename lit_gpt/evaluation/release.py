"""Export a model in the format of other projects, verify it, and add its evaluation to the model card.

Stages: reject a model that has missed its gate → write it in the format → load what was written and compare it with the
model → write the card. Each format reports what it did as lines of text.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from lit_gpt.atomic import atomic_file
from lit_gpt.checkpoints.adapters import save_peft_folder
from lit_gpt.checkpoints.bundle import BundleMetadata, save_bundle, torch_dtype
from lit_gpt.checkpoints.huggingface import LazyWeights
from lit_gpt.checkpoints.huggingface.verify import check_memory, check_opens
from lit_gpt.checkpoints.model_card import CardFacts, Opens, model_card
from lit_gpt.checkpoints.resolve import (
    ModelSource,
    exportable_weights,
    resolve_adapter,
    resolve_model,
    training_facts,
)
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evaluation.report import gate_of, newest_report
from lit_gpt.generation.loading import source_tokenizer
from lit_gpt.planning.framing import PROVENANCE, RISK, read_brief

Format = Literal["hf", "gguf", "torch", "adapter"]


def export_model(
    model: str,
    out: str,
    format: Format = "hf",
    adapter: str | None = None,
    dtype: str = "keep",
    check: bool = True,
    allow_failed_gate: bool = False,
    brief: str | None = None,
) -> list[str]:
    """Export a model.

    Args:
        model: A run's folder, a checkpoint, a bundle, a Hugging Face folder, a GGUF file, or a hub name.
        out: The folder or file to write; it must not exist.
        format: A Hugging Face folder, a GGUF file, a program of torch.export, or only the adapter.
        adapter: A run, checkpoint or peft folder with an adapter to merge; with `format="adapter"`, what to export.
        dtype: Dtype of the exported weights; keep: that of the model.
        check: Whether to load what was written and compare it with the model.
        allow_failed_gate: Whether to export a model that has missed its gate; its card says so.
        brief: Project brief of `plan init`, for the card; where it says that a wrong answer is costly, a model without
            a gate is rejected like one that has missed it, and where all documents must be known, one without them.

    Returns:
        Lines of text with what was done and what to do next.

    Raises:
        UserError: If there is no such model, it has missed its gate, it lacks what the brief asks for, something is at
            `out`, a setting does not fit the format, or what was written differs from the model.
    """
    if dtype == "q8_0" and format != "gguf":
        raise UserError(f"dtype q8_0 is a type of GGUF; for --format {format} choose another, or see `quantize`")
    answers = {} if brief is None else read_brief(brief)
    if format == "adapter":
        _refuse_failed(adapter or model, allow_failed_gate, answers)
        return list(_export_adapter(adapter or model, out))
    if format != "hf" and Path(_card_of(out)).exists():
        raise UserError(
            f"{_card_of(out)}, where the model card would be, exists; choose another --out, or remove it first"
        )
    source = resolve_model(model, adapter=adapter)
    if answers.get(PROVENANCE) == "yes" and not (source.lineage or {}).get("corpus"):
        raise UserError(
            f"brief {brief} asks that all documents behind the model are known, but {model} has no lineage that names "
            f"its corpus; export a run of `fit`, or set {PROVENANCE!r} to no in the brief"
        )
    facts = _facts(source, model if adapter is None else adapter, out, dtype, allow_failed_gate, answers)
    kind = None if dtype == "keep" else dtype
    if format == "hf":
        return list(_export_hf(source, out, kind, check, facts))
    if format == "gguf":
        return list(_export_gguf(source, out, kind, check, facts))
    return list(_export_torch(source, out, kind, check, facts))


def _export_hf(source: ModelSource, out: str, dtype: str | None, check: bool, facts: CardFacts) -> Iterator[str]:
    if check:
        check_memory(source.config)
    weights = exportable_weights(source)
    compared: list[float] = []

    def opened(folder: Path) -> None:
        kind = None if dtype is None else torch_dtype(dtype)
        compared.append(check_opens(folder, source.config, weights, kind))

    bundle = save_bundle(
        out,
        source.config,
        weights,
        source.tokenizer_path,
        source.lineage,
        dtype,
        carried=source.carried,
        facts=facts,
        check=opened if check else None,
    )
    yield f"{source.path} -> {bundle}"
    for difference in compared:
        yield f"checked: transformers opens it, and its logits differ from ours by {difference:.1e} at most"
    yield f"to fill in before it is published: {_unknown(facts)} in {bundle / 'README.md'}"
    yield f"next: transformers.AutoModelForCausalLM.from_pretrained({str(bundle)!r})"


def _export_gguf(source: ModelSource, out: str, dtype: str | None, check: bool, facts: CardFacts) -> Iterator[str]:
    from lit_gpt.checkpoints.gguf import save_gguf
    from lit_gpt.checkpoints.gguf.architecture import differences

    weights = exportable_weights(source)
    metadata = BundleMetadata.of(source.config, source.tokenizer_path, source.lineage, source.carried)
    tokenizer = source_tokenizer(source)
    ends = metadata.generation.get("eos_token_id", [])
    stop_ids = [*(() if tokenizer is None else tokenizer.stop_ids), *([ends] if isinstance(ends, int) else ends or [])]
    kind = dtype or _stored_dtype(weights)
    report = save_gguf(
        out,
        source.config,
        weights,
        tokenizer,
        list(dict.fromkeys(stop_ids)),
        kind,
        facts.name,
        check,
        show_progress=sys.stderr.isatty(),
    )
    types = ", ".join(f"{count} {name}" for name, count in report.types.items())
    card = _write_card(source, out, tokenizer, facts, f"{kind} (GGUF; {types})", "llama.cpp")
    yield f"{source.path} -> {report.path} ({report.num_bytes / 1e6:,.1f} MB, {types}; {report.architecture})"
    if check:
        yield f"checked: {report.num_tensors} tensors read back"
    for difference in differences(source.config):
        yield f"note: {difference}"
    yield f"to fill in before it is published: {_unknown(facts)} in {card}"
    yield f'next: llama-cli -m {report.path} -p "..."'


def _export_torch(source: ModelSource, out: str, dtype: str | None, check: bool, facts: CardFacts) -> Iterator[str]:
    from lit_gpt.checkpoints.torch_program import loader_line, save_torch_program

    weights = exportable_weights(source)
    difference = save_torch_program(out, source.config, weights, dtype, check)
    card = _write_card(source, out, source_tokenizer(source), facts, dtype or _stored_dtype(weights), "torch")
    yield f"{source.path} -> {out}"
    if difference is not None:
        yield f"checked: read again, its logits differ from the model's by {difference:.1e} at most"
    yield f"to fill in before it is published: licence and intended use in {card}"
    yield f"next: {loader_line(out)}(input_ids)  # (B, T) int64 -> (B, T, V) logits"


def _export_adapter(model: str, out: str) -> Iterator[str]:
    saved = resolve_adapter(model)
    folder = save_peft_folder(out, saved)
    yield f"{saved.path} -> {folder}"
    yield f"next: python -m lit_gpt generate --model {saved.base} --adapter {folder}"


def _write_card(
    source: ModelSource, out: str, tokenizer: Tokenizer | None, facts: CardFacts, dtype: str, opens: Opens
) -> Path:
    """Write the card of a single file next to it and return its path."""
    card = Path(_card_of(out))
    text = model_card(source.config, tokenizer, source.lineage or {}, facts, dtype, opens)
    with atomic_file(card) as path:
        path.write_text(text, encoding="utf-8")
    return card


def _card_of(out: str) -> str:
    """Return the file name of the card of a single-file export."""
    return f"{out}.md"


def _facts(
    source: ModelSource, model: str, out: str, dtype: str, allow_failed_gate: bool, brief: Mapping[str, str]
) -> CardFacts:
    """Return the training and evaluation facts for the card, after checking the gate."""
    gate = _refuse_failed(model, allow_failed_gate, brief)
    report = newest_report(model)
    facts = CardFacts(Path(out).stem if out.endswith((".gguf", ".pt2")) else Path(out).name)
    training = training_facts(source.path)
    if report is None:
        return CardFacts(facts.name, training, gate=gate, brief=brief)
    content = report.content
    evaluated = f"on {str(content['created'])[:10]} by the plan `{content['name']}`"
    measured = content["model"].get("dtype")
    if dtype not in ("keep", measured):
        evaluated += f", before the weights{f', then {measured},' if measured else ''} were converted to {dtype}"
    return CardFacts(facts.name, training, content["results"], evaluated, gate, brief)


def _refuse_failed(model: str, allowed: bool, brief: Mapping[str, str]) -> dict[str, object] | None:
    """Return the verdict on a model's weights as plain data, None if there is none.

    Raises:
        UserError: If the gate was missed, or there is none and the brief says that a wrong answer is costly.
    """
    record = gate_of(model)
    if record is None:
        if brief.get(RISK) == "high" and not allowed:
            raise UserError(
                f"the project brief says {RISK}: high, and {model} was checked against no gate; evaluate it with one "
                "(evaluate --config configs/eval/safety.yaml), or export it anyway with --allow_failed_gate true"
            )
        return None
    if not record.passed and not allowed:
        missed = "; ".join(f"{verdict.key} is {verdict.reason}" for verdict in record.missed)
        raise UserError(
            f"{model} has missed its gate (plan {', '.join(record.plans)}: {record.report}): {missed}. Train it "
            "further and evaluate it again, or export it anyway with --allow_failed_gate true, which its card "
            "will say"
        )
    return record.to_dict()


def _unknown(facts: CardFacts) -> str:
    return "licence" if facts.brief else "licence and intended use"


def _stored_dtype(weights: object) -> str:
    """Return the name of the embedding's dtype."""
    if isinstance(weights, LazyWeights):
        return str(weights.meta("wte.weight").dtype).removeprefix("torch.")
    return str(weights["wte.weight"].dtype).removeprefix("torch.")  # type: ignore[index]
