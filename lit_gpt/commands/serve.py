"""Serve a model over HTTP."""

from typing import Literal

from lit_gpt.serving.admission import Limits


def serve(
    model: str,
    adapter: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    chat_template: str | None = None,
    api_keys_file: str | None = None,
    allowed_hosts: list[str] | None = None,
    cors_origins: list[str] | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep",
    max_batch_size: int = 16,
    cache_tokens: int | None = None,
    prefill_chunk: int = 512,
    compile: bool = False,
    draft_model: str | None = None,
    draft_tokens: int = 0,
    guards: str | None = None,
    root_path: str = "",
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> None:
    """Serve a model: OpenAI's API under /v1, a chat page at /, metrics for Prometheus at /metrics.

    Args:
        model: a run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        adapter: folder of an adapter to apply to it.
        host: address to listen on; any but loopback needs API keys.
        port: 0 takes any free one.
        name: what requests call the model; null: its folder's name.
        chat_template: a preset (chatml, llama3, qwen, ...) or a Jinja file, instead of the model's own.
        api_keys_file: file with a key on each line, any of which opens the API; or the variable LIT_GPT_API_KEYS,
            separated by commas. Without keys, everyone who reaches the port may use it.
        allowed_hosts: host names that requests may use; null: those of loopback where it listens there, else any.
        cors_origins: origins of other pages that may call the API from a browser, such as https://example.org.
        device: where to run; auto takes the accelerator if there is one.
        dtype: of the weights; keep: as they are stored.
        max_batch_size: sequences that run at once; others wait in the queue.
        cache_tokens: capacity of the KV cache in tokens; null: a full context for each sequence of the batch.
        prefill_chunk: prompt tokens processed in one forward pass.
        compile: decode through torch.compile with fixed shapes.
        draft_model: a smaller model with the same tokenizer that proposes tokens for this one to verify.
        draft_tokens: tokens to propose at a time; without a draft model they are looked up in the text so far; 0: no
            speculation.
        guards: YAML file of guards that check requests and answers: personal data, block lists, a classifier of your
            own (`lit_gpt.serving.guards`).
        root_path: path under which a reverse proxy publishes the server, such as /llm.
        limits: bounds for each request and for all together.
    """
    from lit_gpt.extras import need

    for module in ("fastapi", "uvicorn", "sse_starlette", "prometheus_client"):
        need(module, "serve", "serve")
    from lit_gpt.serving.app import create_app
    from lit_gpt.serving.guards import load_guards
    from lit_gpt.serving.middleware import Keys, allowed_names, read_keys
    from lit_gpt.serving.model import load_served
    from lit_gpt.serving.server import address_of, listen, serve_until_stopped
    from lit_gpt.serving.service import Service

    bounds = Limits(**limits) if isinstance(limits, dict) else limits  # the parser's own form
    keys = Keys(read_keys(api_keys_file))
    watching = [] if guards is None else load_guards(guards)
    hosts = allowed_names(host, allowed_hosts, len(keys))
    opened = listen(host, port)
    served = load_served(
        model,
        adapter,
        name,
        chat_template,
        device,
        dtype,
        max_batch_size,
        cache_tokens,
        prefill_chunk,
        compile,
        draft_model,
        draft_tokens,
    )
    service = Service(served, bounds, watching)
    address = address_of(opened)
    stats = served.stats()
    print(f"{served.name} ({served.max_length} tokens of context) at {address}", flush=True)
    print(f"  cache   {stats.cache_tokens_total} tokens, at most {stats.cache_bytes / 2**20:.0f} MiB", flush=True)
    if watching:
        print(f"  guards  {', '.join(guard.name for guard in watching)}", flush=True)
    print(f"  page    {address}/", flush=True)
    print(f'  openai  OpenAI(base_url="{address}/v1", api_key={"<a key>" if len(keys) else "any"!r})', flush=True)
    serve_until_stopped(create_app(service, keys, hosts, cors_origins or (), root_path), service, opened)
