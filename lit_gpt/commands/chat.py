"""Chat with a model in the terminal."""

from typing import Literal


def chat(
    model: str,
    system: str | None = None,
    chat_template: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.7,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    weights: Literal["auto", "plain", "float32", "bfloat16", "int8", "int4"] = "auto",
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep",
    adapter: str | None = None,
) -> None:
    """Chat with a model in the terminal; its answers appear as they are generated.

    Lines that begin with a slash are commands: /reset, /system, /save, /help, /exit (or /quit, /q, /bye). Ctrl-C stops
    an answer.

    Args:
        model: run folder, checkpoint, bundle, Hugging Face folder, GGUF file, or Hub name.
        system: system message; null: none.
        chat_template: preset (chatml, llama3, gemma, qwen, mistral, alpaca) or Jinja file to use instead of the model's
            own template.
        max_new_tokens: maximum number of tokens in an answer.
        temperature: softmax temperature; 0 always chooses the most likely token.
        top_k: sample from the k most likely tokens; null: no limit.
        top_p: sample from the smallest set of most likely tokens with this total probability; null: no limit.
        min_p: sample from tokens at least this fraction as probable as the most likely one; null: no limit.
        repetition_penalty: factor by which the logits of tokens already in the text are reduced; 1: off.
        seed: sampling seed; null: a different one each time.
        device: device to run on; auto uses the accelerator if there is one.
        weights: form of the weights on a CPU, prepared once after loading: float32, bfloat16, int8, or int4 (groups of
            32); auto: the model's own precision, in the layout that this machine measures as fastest; plain: as loaded.
        dtype: data type of the weights; keep: as they are stored.
        adapter: folder of an adapter to merge into the model.
    """
    from lit_gpt.data.chat import ChatRenderer, load_chat_template, template_of
    from lit_gpt.generation import Engine, EngineLoop, SamplingParams
    from lit_gpt.generation.chat_session import ChatSession, converse
    from lit_gpt.generation.loading import load_for_generation, load_speculation, resolve_for_generation

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    source = resolve_for_generation(model, device, adapter)
    network, tokenizer = load_for_generation(source, device, weights=weights, dtype=dtype)
    template = template_of(tokenizer) if chat_template is None else load_chat_template(chat_template)
    renderer = ChatRenderer(tokenizer, template)
    speculation = load_speculation(network, tokenizer, source, None, None)
    engine = Engine(network, tokenizer, max_batch_size=1, speculation=speculation)
    loop = EngineLoop(engine)
    try:
        converse(ChatSession(loop, renderer, params, engine.max_length, system))
    finally:
        loop.close(drain=False)
