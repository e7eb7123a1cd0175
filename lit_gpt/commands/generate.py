"""Continue prompts with a trained model."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lit_gpt.generation import Completion, SamplingParams


def generate(
    model: str,
    prompt: str = "",
    prompts: str | None = None,
    out: str | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    stop: list[str] | None = None,
    ignore_eos: bool = False,
    num_samples: int = 1,
    seed: int = 0,
    logprobs: int | None = None,
    json_schema: str | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    draft_model: str | None = None,
    draft_tokens: int = 0,
    batch_size: int = 16,
    cache_tokens: int | None = None,
    compile: bool = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    adapter: str | None = None,
) -> None:
    """Continue one prompt, printed as it is written, or many prompts, written as one JSON object a line.

    Args:
        model: a run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        prompt: text to go on from; empty: the start of a document; `-`: all of standard input.
        prompts: file of prompts, or `-` for standard input: a line of text each, or the records with a field `prompt`
            (and `id`, ...) of JSON, JSON lines (which standard input may hold, too), CSV, TSV, Parquet or Arrow. The
            answers are JSON lines.
        out: file for the JSON lines; null: standard output. With a single prompt, JSON instead of text.
        max_new_tokens: tokens to write at most; the end-of-text token ends it sooner.
        temperature: of the softmax; 0 takes the likeliest token each time.
        top_k: sample among the k likeliest tokens.
        top_p: sample among the likeliest tokens that together have this probability.
        min_p: sample among tokens with at least this share of the likeliest one's probability.
        repetition_penalty: divides the logits of tokens that have occurred; 1: none.
        presence_penalty: subtracted from the logits of tokens that were written; 0: none.
        frequency_penalty: subtracted once for every time that a token was written; 0: none.
        stop: texts that end the writing.
        ignore_eos: write on past the end-of-text token.
        num_samples: continuations of each prompt; several of one are printed after lines that number them.
        seed: of the sampling; sample number i of a prompt has seed + i.
        logprobs: log-probabilities of the tokens and of this many of the likeliest beside them, in the JSON lines.
        json_schema: file with a JSON schema that the text shall follow.
        regex: expression that the text shall match.
        grammar: file with a grammar, in Lark's notation, that the text shall follow.
        draft_model: a smaller model with the same tokenizer that proposes tokens for this one to verify.
        draft_tokens: tokens to propose at a time; without a draft model they are looked up in the text so far; 0: none.
        batch_size: prompts at once.
        cache_tokens: room for keys and values, in tokens; null: for `batch_size` texts of full length.
        compile: decode through torch.compile with fixed shapes.
        device: where to run; auto takes the accelerator if there is one.
        adapter: folder of an adapter for the model.
    """
    import sys
    from pathlib import Path

    from lit_gpt.errors import UserError
    from lit_gpt.generation import Engine, SamplingParams, Speculation
    from lit_gpt.generation.loading import load_for_generation

    if num_samples < 1:
        raise UserError(f"num_samples must be at least 1; got {num_samples}")
    if prompts is not None and prompt:
        raise UserError("--prompt and --prompts are both given; choose one")
    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        seed=seed,
        logprobs=logprobs,
        constraint=_constraint(json_schema, regex, grammar),
    )
    network, tokenizer = load_for_generation(model, device, adapter)
    speculation = None
    if draft_model is not None or draft_tokens:
        draft = None if draft_model is None else load_for_generation(draft_model, device)
        speculation = Speculation.of(tokenizer, draft_tokens or 4, draft)
    if prompt == "-":
        prompt = sys.stdin.read()
    rows: list[dict[str, Any]] = [{"prompt": prompt}] if prompts is None else _read_prompts(prompts)
    engine = Engine(
        network,
        tokenizer,
        max_batch_size=1 if prompts is None else batch_size,
        cache_tokens=cache_tokens,
        re_prefill_when_full=True,
        compile=compile,
        speculation=speculation,
    )
    if prompts is None and out is None:
        _print_samples(engine, prompt, params, num_samples)
        return
    lines = _answers(engine, rows, params, num_samples)
    if out is None:
        for line in lines:
            print(line, flush=True)
        return
    try:
        with Path(out).expanduser().open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                file.flush()
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}") from error


def _print_samples(engine: Any, prompt: str, params: "SamplingParams", num_samples: int) -> None:
    from dataclasses import replace

    from lit_gpt.generation import stream_with

    assert params.seed is not None
    for sample in range(num_samples):
        if num_samples > 1:
            print(f"--- sample {sample + 1} of {num_samples}")
        print(prompt, end="", flush=True)
        for piece in stream_with(engine, prompt, replace(params, seed=params.seed + sample)):
            print(piece, end="", flush=True)
        print()


def _answers(engine: Any, rows: list[dict[str, Any]], params: "SamplingParams", num_samples: int) -> Any:
    """JSON lines in the order of the prompts, each as soon as those before it are there."""
    import json
    from dataclasses import replace

    from lit_gpt.generation import complete_texts

    assert params.seed is not None
    each = [replace(params, seed=params.seed + sample) for _ in rows for sample in range(num_samples)]
    texts = [row["prompt"] for row in rows for _ in range(num_samples)]
    for number, completion in enumerate(complete_texts(engine, texts, each)):
        row = rows[number // num_samples]
        record = {**row, **({"sample": number % num_samples} if num_samples > 1 else {}), **_record(completion)}
        yield json.dumps(record, ensure_ascii=False)


def _record(completion: "Completion") -> dict[str, Any]:
    record: dict[str, Any] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": len(completion.prompt_ids),
        "completion_tokens": len(completion.token_ids),
    }
    if completion.error is not None:
        record["error"] = completion.error
    if completion.logprobs is not None:
        record |= {"token_ids": completion.token_ids, "logprobs": completion.logprobs}
        record["top_logprobs"] = [dict(tops) for tops in completion.top_logprobs or []]
    return record


def _constraint(json_schema: str | None, regex: str | None, grammar: str | None) -> Any:
    from lit_gpt.errors import UserError
    from lit_gpt.generation import Constraint

    given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    forms = {name: value for name, value in given.items() if value is not None}
    if len(forms) > 1:
        raise UserError(f"--{' and --'.join(forms)} are given; a text can follow one form")
    if json_schema is not None:
        return Constraint("json_schema", _read(json_schema))
    if grammar is not None:
        return Constraint("grammar", _read(grammar))
    return None if regex is None else Constraint("regex", regex)


def _read_prompts(name: str) -> list[dict[str, Any]]:
    """Return the prompts of a file or of standard input, each with the fields that came with it."""
    import tempfile
    from pathlib import Path

    from lit_gpt.data.records import BadInput, FileRecords, TextField
    from lit_gpt.errors import UserError

    shown = "standard input" if name == "-" else name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(name).expanduser()
        if name == "-":
            text = _read(name)
            path = Path(folder, "prompts.jsonl" if text.lstrip().startswith('{"') else "prompts.txt")
            path.write_text(text, encoding="utf-8")
        # Of a plain text each line is a prompt; of a table or JSON each record.
        source = FileRecords([(shown, path)], text_field="prompt", document_separator="\n")
        bad_input = BadInput(remedy="fix or remove it")
        prompt = TextField("prompt")
        rows = [dict(record.values) for record in source.records(bad_input) if prompt.document(record, bad_input)]
    if not rows:
        raise UserError(f"{shown} has no prompts")
    return rows


def _read(name: str) -> str:
    import sys
    from pathlib import Path

    from lit_gpt.errors import UserError

    if name == "-":
        return sys.stdin.read()
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read: {error}") from error
