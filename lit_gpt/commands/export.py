"""Write a model that other projects open."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from lit_gpt.checkpoints.model_card import CardFacts, Opens
    from lit_gpt.checkpoints.resolve import ModelSource
    from lit_gpt.data.tokenizers import Tokenizer


def export(
    model: str,
    out: str,
    format: Literal["hf", "gguf", "torch", "adapter"] = "hf",
    adapter: str | None = None,
    dtype: Literal["keep", "float32", "bfloat16", "float16", "q8_0"] = "keep",
    check: bool = True,
    allow_failed_gate: bool = False,
) -> None:
    """Write a model for transformers, vLLM, llama.cpp, torch.export or peft, checked, with a model card.

    A model that was imported keeps its chat template, special tokens and generation_config.json. An adapter is merged
    into its base, except by `--format adapter`. A model that has missed the gate of a plan is refused.

    Args:
        model: a run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        out: the folder to write, or the file of gguf (`my-gpt.gguf`) and torch (`my-gpt.pt2`); it must not exist.
        format: hf: a Hugging Face folder, which is a bundle of ours as well; gguf: one file for llama.cpp; torch: a
            program of torch.export with free batch and length; adapter: the adapter alone (of `adapter`, or of a
            `model` that was trained as one), in peft's format.
        adapter: a run, checkpoint or peft folder with an adapter that was trained on the model.
        dtype: of the weights; keep: as they were trained; q8_0: 8 bits in blocks of 32, for gguf alone.
        check: open what was written (hf: in transformers, torch: as a program, gguf: tensor by tensor) and compare it
            with the model before it is called done; false for a model that does not fit into memory twice.
        allow_failed_gate: export a model that has missed its gate; its card says so.
    """
    from pathlib import Path

    from lit_gpt.checkpoints.resolve import resolve_model
    from lit_gpt.errors import UserError

    if dtype == "q8_0" and format != "gguf":
        raise UserError(f"dtype q8_0 is a type of GGUF; for --format {format} choose another, or see `quantize`")
    if format == "adapter":
        _refuse_failed(adapter or model, allow_failed_gate)
        _export_adapter(adapter or model, out)
        return
    if format != "hf" and Path(_card_of(out)).exists():
        raise UserError(f"{_card_of(out)}, where the model card goes, exists; choose another --out, or remove it first")
    source = resolve_model(model, adapter=adapter)
    facts = _facts(source, model if adapter is None else adapter, out, dtype, allow_failed_gate)
    kind = None if dtype == "keep" else dtype
    if format == "hf":
        _export_hf(source, out, kind, check, facts)
    elif format == "gguf":
        _export_gguf(source, out, kind, check, facts)
    else:
        _export_torch(source, out, kind, check, facts)


def _export_hf(source: "ModelSource", out: str, dtype: str | None, check: bool, facts: "CardFacts") -> None:
    from pathlib import Path

    from lit_gpt.checkpoints.bundle import save_bundle, torch_dtype
    from lit_gpt.checkpoints.huggingface.verify import check_memory, check_opens
    from lit_gpt.checkpoints.resolve import language_model_weights

    if check:
        check_memory(source.config)
    weights = language_model_weights(source)
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
    print(f"{source.path} -> {bundle}")
    for difference in compared:
        print(f"checked: transformers opens it, and its logits differ from ours by {difference:.1e} at most")
    print(f"to fill in before it is published: licence and intended use in {bundle / 'README.md'}")
    print(f"next: transformers.AutoModelForCausalLM.from_pretrained({str(bundle)!r})")


def _export_gguf(source: "ModelSource", out: str, dtype: str | None, check: bool, facts: "CardFacts") -> None:
    import sys

    from lit_gpt.checkpoints.bundle import Beside
    from lit_gpt.checkpoints.gguf import save_gguf
    from lit_gpt.checkpoints.gguf.architecture import differences
    from lit_gpt.checkpoints.resolve import language_model_weights
    from lit_gpt.generation.loading import source_tokenizer

    weights = language_model_weights(source)
    beside = Beside.of(source.config, source.tokenizer_path, source.lineage, source.carried)
    tokenizer = source_tokenizer(source)
    ends = beside.generation.get("eos_token_id", [])
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
    print(f"{source.path} -> {report.path} ({report.num_bytes / 1e6:,.1f} MB, {types}; {report.architecture})")
    if check:
        print(f"checked: {report.num_tensors} tensors read back")
    for difference in differences(source.config):
        print(f"note: {difference}")
    print(f"to fill in before it is published: licence and intended use in {card}")
    print(f'next: llama-cli -m {report.path} -p "..."')


def _export_torch(source: "ModelSource", out: str, dtype: str | None, check: bool, facts: "CardFacts") -> None:
    from lit_gpt.checkpoints.resolve import language_model_weights
    from lit_gpt.checkpoints.torch_program import loader_line, save_torch_program
    from lit_gpt.generation.loading import source_tokenizer

    weights = language_model_weights(source)
    difference = save_torch_program(out, source.config, weights, dtype, check)
    card = _write_card(source, out, source_tokenizer(source), facts, dtype or _stored_dtype(weights), "torch")
    print(f"{source.path} -> {out}")
    if difference is not None:
        print(f"checked: read again, its logits differ from the model's by {difference:.1e} at most")
    print(f"to fill in before it is published: licence and intended use in {card}")
    print(f"next: {loader_line(out)}(input_ids)  # (B, T) int64 -> (B, T, V) logits")


def _export_adapter(model: str, out: str) -> None:
    from lit_gpt.checkpoints.adapters import save_peft_folder
    from lit_gpt.checkpoints.resolve import resolve_adapter

    saved = resolve_adapter(model)
    folder = save_peft_folder(out, saved)
    print(f"{saved.path} -> {folder}")
    print(f"next: python -m lit_gpt generate --model {saved.base} --adapter {folder}")


def _write_card(
    source: "ModelSource", out: str, tokenizer: "Tokenizer | None", facts: "CardFacts", dtype: str, opens: "Opens"
) -> "Path":
    """Write the card of a single file beside it; return where."""
    from pathlib import Path

    from lit_gpt.atomic import whole_file
    from lit_gpt.checkpoints.model_card import model_card

    card = Path(_card_of(out))
    text = model_card(source.config, tokenizer, source.lineage or {}, facts, dtype, opens)
    with whole_file(card) as path:
        path.write_text(text, encoding="utf-8")
    return card


def _card_of(out: str) -> str:
    """The name of a single file's card."""
    return f"{out}.md"


def _facts(source: "ModelSource", model: str, out: str, dtype: str, allow_failed_gate: bool) -> "CardFacts":
    """What the card says of training and evaluation, after the gate."""
    from pathlib import Path

    from lit_gpt.checkpoints.model_card import CardFacts
    from lit_gpt.checkpoints.resolve import training_facts
    from lit_gpt.evaluation.report import newest_report

    gate = _refuse_failed(model, allow_failed_gate)
    report = newest_report(model)
    facts = CardFacts(Path(out).stem if out.endswith((".gguf", ".pt2")) else Path(out).name)
    training = training_facts(source.path)
    if report is None:
        return CardFacts(facts.name, training, gate=gate)
    content = report.content
    evaluated = f"on {str(content['created'])[:10]} by the plan `{content['name']}`"
    measured = content["model"].get("dtype")
    if dtype not in ("keep", measured):
        evaluated += f", before the weights{f', then {measured},' if measured else ''} were converted to {dtype}"
    return CardFacts(facts.name, training, content["results"], evaluated, gate)


def _refuse_failed(model: str, allowed: bool) -> dict[str, object] | None:
    """Return the verdict on a model's weights as plain data, None if there is none; refuse one that failed."""
    from lit_gpt.errors import UserError
    from lit_gpt.evaluation.report import gate_of

    record = gate_of(model)
    if record is None:
        return None
    if not record.passed and not allowed:
        missed = "; ".join(f"{verdict.key} is {verdict.reason}" for verdict in record.missed)
        raise UserError(
            f"{model} has missed its gate (plan {', '.join(record.plans)}: {record.report}): {missed}. Train it "
            "further and evaluate it again, or export it all the same with --allow_failed_gate true, which its card "
            "will say"
        )
    return record.to_dict()


def _stored_dtype(weights: object) -> str:
    """The name of the type that the embedding is stored in."""
    from lit_gpt.checkpoints.huggingface import LazyWeights

    if isinstance(weights, LazyWeights):
        return str(weights.meta("wte.weight").dtype).removeprefix("torch.")
    return str(weights["wte.weight"].dtype).removeprefix("torch.")  # type: ignore[index]
