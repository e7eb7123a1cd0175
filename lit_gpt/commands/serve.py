"""Serve a model over HTTP."""

from typing import TYPE_CHECKING, Literal

from lit_gpt.serving.admission import Limits

if TYPE_CHECKING:
    from lit_gpt.generation.engine import EngineStats
    from lit_gpt.serving.model import ServedModel


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
    weights: Literal["auto", "plain", "float32", "bfloat16", "int8", "int4"] = "auto",
    max_batch_size: int = 16,
    cache_tokens: int | None = None,
    max_length: int | None = None,
    prefill_chunk: int = 512,
    compile: bool = False,
    draft_model: str | None = None,
    draft_tokens: int | None = None,
    guards: str | None = None,
    root_path: str = "",
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> None:
    """Serve a model over HTTP: the OpenAI API under /v1, a chat page at /, Prometheus metrics at /metrics.

    Args:
        model: run folder, checkpoint, bundle, Hugging Face folder, GGUF file, or Hub name.
        adapter: folder of an adapter to merge into the model.
        host: address to listen on; any other than loopback requires API keys.
        port: port to listen on; 0: any free port.
        name: model name that requests use; null: the name of the model's folder.
        chat_template: preset (chatml, llama3, qwen, ...) or Jinja file to use instead of the model's own template.
        api_keys_file: file with one API key per line; null: the environment variable LIT_GPT_API_KEYS, separated by
            commas. Without keys, anyone who can reach the port may use the API.
        allowed_hosts: host names that requests may use; null: the loopback names if the server listens on loopback,
            otherwise any.
        cors_origins: origins of web pages that may call the API from a browser, such as https://example.org.
        device: device to run on; auto uses the accelerator if there is one.
        dtype: data type of the weights; keep: as they are stored.
        weights: form of the weights on a CPU, prepared once after loading: float32, bfloat16, int8, or int4 (groups of
            32); auto: the model's own precision, in the layout that this machine measures as fastest; plain: as loaded.
        max_batch_size: maximum number of sequences in a batch; further ones wait in the queue.
        cache_tokens: KV cache capacity in tokens; null: a full context for each sequence of the batch, or what three
            quarters of the free memory hold. On a CPU its memory is taken as it is used.
        max_length: maximum number of tokens of prompt and answer together; null: the model's context.
        prefill_chunk: maximum number of prompt tokens processed in one forward pass.
        compile: decode through torch.compile with fixed shapes.
        draft_model: smaller model with the same tokenizer whose proposed tokens this model verifies (speculative
            decoding).
        draft_tokens: number of tokens to propose per verification. A draft model proposes them (null or 0: 4). Without
            one, a run trained with `multi_token` proposes them with its multi-token-prediction block while one
            sequence decodes; other models look them up in the text so far. Null: looked up while one sequence decodes
            on a CPU and it is faster; 0: no speculation.
        guards: YAML file of guards that check requests and answers: personal data, block lists, or your own classifier
            (`lit_gpt.serving.guards`).
        root_path: path prefix under which a reverse proxy publishes the server, such as /llm.
        limits: limits per request and for the whole server.
    """
    from lit_gpt.extras import need

    for module in ("fastapi", "uvicorn", "sse_starlette", "prometheus_client"):
        need(module, "serve", "serve")
    from lit_gpt.generation.speculative import check_draft_tokens
    from lit_gpt.serving.app import create_app
    from lit_gpt.serving.guards import load_guards
    from lit_gpt.serving.middleware import Keys, allowed_names, read_keys
    from lit_gpt.serving.model import load_served
    from lit_gpt.serving.server import address_of, listen, serve_until_stopped
    from lit_gpt.serving.service import Service

    check_draft_tokens(draft_tokens)
    bounds = Limits(**limits) if isinstance(limits, dict) else limits  # the parser passes a dict
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
        weights,
        max_batch_size,
        cache_tokens,
        max_length,
        prefill_chunk,
        compile,
        draft_model,
        draft_tokens,
    )
    served.warm_up()
    service = Service(served, bounds, watching)
    app = create_app(service, keys, hosts, cors_origins or (), root_path)
    address = address_of(opened)

    def announce() -> None:
        print(f"{served.name} ({served.max_length} tokens of context) at {address}", flush=True)
        print(f"  cache   {_cache_line(served, served.stats())}", flush=True)
        if watching:
            print(f"  guards  {', '.join(guard.name for guard in watching)}", flush=True)
        print(f"  page    {address}/", flush=True)
        print(f'  openai  OpenAI(base_url="{address}/v1", api_key={"<a key>" if len(keys) else "any"!r})', flush=True)

    serve_until_stopped(app, service, opened, announce)


def _cache_line(served: "ServedModel", stats: "EngineStats") -> str:
    """Return the size of the KV cache in words."""
    from lit_gpt.pages.text import counted, human_bytes

    rows, length, total = served.max_batch_size, served.max_length, stats.cache_tokens_total
    shared = "" if rows * length <= total else f", of which {total} fit at a time"
    taken = ", taken as used" if served.network.wte.weight.device.type == "cpu" else ""
    return f"{counted(rows, 'sequence')} x {length} tokens{shared}: at most {human_bytes(stats.cache_bytes)}{taken}"
