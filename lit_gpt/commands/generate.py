"""Generate text from prompts."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lit_gpt.data.chat import ChatRenderer
    from lit_gpt.generation import Completion, SamplingParams


def generate(
    model: str,
    prompt: str = "",
    prompts: str | None = None,
    chat: bool = False,
    chat_template: str | None = None,
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
    draft_tokens: int | None = None,
    batch_size: int = 16,
    cache_tokens: int | None = None,
    compile: bool = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    weights: Literal["auto", "plain", "float32", "bfloat16", "int8", "int4"] = "auto",
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep",
    adapter: str | None = None,
) -> None:
    """Generate text from one prompt, streamed to the terminal, or from many prompts, written as JSON lines.

    Args:
        model: run folder, checkpoint, bundle, Hugging Face folder, GGUF file, or Hub name.
        prompt: text to continue; empty: start a new document; `-`: read standard input.
        prompts: file of prompts, or `-` for standard input: plain text with one prompt per line, or records with a
            `prompt` field (and optionally `id`, ...) in JSON, JSON lines, CSV, TSV, Parquet or Arrow; standard input
            may be plain text or JSON lines. Completions are written as JSON lines.
        chat: put each prompt as a user's message through the model's chat template; only the answer is printed.
        chat_template: preset (chatml, llama3, gemma, qwen, ...) or Jinja file to use with `chat` instead of the model's
            own template.
        out: output file for JSON lines; null: standard output. A single prompt is then also written as JSON.
        max_new_tokens: maximum number of generated tokens; the end-of-text token stops generation earlier.
        temperature: softmax temperature; 0 always chooses the most likely token.
        top_k: sample from the k most likely tokens; null: no limit.
        top_p: sample from the smallest set of most likely tokens with this total probability; null: no limit.
        min_p: sample from tokens at least this fraction as probable as the most likely one; null: no limit.
        repetition_penalty: factor by which the logits of tokens already in the text are reduced; 1: off.
        presence_penalty: amount subtracted from the logits of tokens already generated; 0: off.
        frequency_penalty: amount subtracted from a token's logit each time it has been generated; 0: off.
        stop: strings that end generation.
        ignore_eos: continue past the end-of-text token.
        num_samples: number of completions per prompt.
        seed: sampling seed; the i-th sample of a prompt uses seed + i.
        logprobs: number of most likely alternatives whose log-probabilities are written to the JSON lines for each
            generated token, in addition to the token's own; null: no log-probabilities.
        json_schema: file with a JSON schema that the completion must follow.
        regex: regular expression that the completion must match.
        grammar: file with a grammar in Lark syntax that the completion must follow.
        draft_model: smaller model with the same tokenizer whose proposed tokens this model verifies (speculative
            decoding).
        draft_tokens: number of tokens to propose per verification. A draft model proposes them (null or 0: 4). Without
            one, a run trained with `multi_token` proposes them with its multi-token-prediction block while one
            sequence decodes; other models look them up in the text so far. Null: looked up while one sequence decodes
            on a CPU and it is faster; 0: no speculation.
        batch_size: maximum number of prompts in a batch.
        cache_tokens: KV cache capacity in tokens; null: a full context for each of `batch_size` sequences, or what
            three quarters of the free memory hold.
        compile: decode through torch.compile with fixed shapes.
        device: device to run on; auto uses the accelerator if there is one.
        weights: form of the weights on a CPU, prepared once after loading: float32, bfloat16, int8, or int4 (groups of
            32); auto: the model's own precision, in the layout that this machine measures as fastest; plain: as loaded.
        dtype: data type of the weights; keep: as they are stored.
        adapter: folder of an adapter to merge into the model.
    """
    import sys
    from dataclasses import replace

    from lit_gpt.checks import check_at_least, local_path
    from lit_gpt.data.chat.template import has_template
    from lit_gpt.errors import UserError
    from lit_gpt.generation import Engine, SamplingParams
    from lit_gpt.generation.loading import load_for_generation, load_speculation, make_renderer, resolve_for_generation
    from lit_gpt.generation.speculative import check_draft_tokens

    check_at_least("num_samples", num_samples, 1)
    check_draft_tokens(draft_tokens)
    if prompts is not None and prompt:
        raise UserError("--prompt and --prompts are both given; choose one")
    target = None if out is None else local_path("out", out)
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
    weights = "plain" if compile and weights == "auto" else weights
    tokens = 1 if prompts is None else batch_size
    source = resolve_for_generation(model, device, adapter)
    network, tokenizer = load_for_generation(source, device, weights=weights, tokens=tokens, dtype=dtype)
    renderer = None
    if chat or chat_template is not None:
        renderer = make_renderer(tokenizer, chat_template)
        if renderer is None:
            raise UserError(f"{model} has no chat template; leave out --chat, or name one with --chat_template")
        params = replace(params, stop_token_ids=tuple(sorted(renderer.stop_ids)))
    elif has_template(tokenizer) and sys.stderr.isatty():
        print(f"{model} has a chat template: add --chat to ask it, or use `chat` for a conversation", file=sys.stderr)
    speculation = load_speculation(network, tokenizer, source, draft_model, draft_tokens, device, dtype, compile)
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
    texts = [row["prompt"] if renderer is None else _as_message(renderer, row["prompt"]) for row in rows]
    if prompts is None and target is None:
        _print_samples(engine, texts[0], params, num_samples)
        return
    lines = _answers(engine, rows, texts, params, num_samples)
    if target is None:
        for line in lines:
            print(line, flush=True)
        return
    try:
        with target.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                file.flush()
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}") from error


def _as_message(renderer: "ChatRenderer", prompt: str) -> list[int]:
    """Return the ids of a conversation that consists of one question."""
    return renderer([{"role": "user", "content": prompt}], add_generation_prompt=True).ids


def _print_samples(engine: Any, prompt: str | list[int], params: "SamplingParams", num_samples: int) -> None:
    from dataclasses import replace

    from lit_gpt.generation import stream_with

    assert params.seed is not None
    for sample in range(num_samples):
        if num_samples > 1:
            print(f"--- sample {sample + 1} of {num_samples}")
        print(prompt if isinstance(prompt, str) else "", end="", flush=True)
        for piece in stream_with(engine, prompt, replace(params, seed=params.seed + sample)):
            print(piece, end="", flush=True)
        print()


def _answers(
    engine: Any, rows: list[dict[str, Any]], prompts: list[Any], params: "SamplingParams", num_samples: int
) -> Any:
    """Yield JSON lines in the order of the prompts, each as soon as all earlier ones have been yielded."""
    import json
    from dataclasses import replace

    from lit_gpt.generation import complete_texts

    assert params.seed is not None
    each = [replace(params, seed=params.seed + sample) for _ in rows for sample in range(num_samples)]
    texts = [prompt for prompt in prompts for _ in range(num_samples)]
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
        raise UserError(f"--{' and --'.join(forms)} are given; choose one constraint")
    if json_schema is not None:
        return Constraint("json_schema", _read(json_schema))
    if grammar is not None:
        return Constraint("grammar", _read(grammar))
    return None if regex is None else Constraint("regex", regex)


def _read_prompts(name: str) -> list[dict[str, Any]]:
    """Return the records of a prompt file or of standard input, with all their fields."""
    import sys
    import tempfile
    from pathlib import Path

    from lit_gpt.data.records import BadInput, FileRecords, TextField
    from lit_gpt.errors import UserError

    shown = "standard input" if name == "-" else name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(name).expanduser()
        if name == "-":
            content = sys.stdin.buffer.read()
            path = Path(folder, "prompts.jsonl" if content.lstrip().startswith(b'{"') else "prompts.txt")
            path.write_bytes(content)
        # Each line of a plain text file is a prompt; in tables and JSON, each record is.
        source = FileRecords([(shown, path)], text_field="prompt", document_separator="\n")
        bad_input = BadInput(remedy="fix or remove it")
        prompt = TextField("prompt")
        rows = [dict(record.values) for record in source.records(bad_input) if prompt.document(record, bad_input)]
    if not rows:
        raise UserError(f"{shown} contains no prompts")
    return rows


def _read(name: str) -> str:
    from pathlib import Path

    from lit_gpt.errors import UserError

    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name} cannot be read: {error}") from error
