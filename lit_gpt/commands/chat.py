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
    adapter: str | None = None,
) -> None:
    """Chat with a model in the terminal; its answers appear as they are generated.

    Lines that begin with a slash are commands: /reset, /system, /save, /help, /exit (or /quit, /q, /bye). Ctrl-C stops
    an answer.

    Args:
        model: a run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        system: the system message.
        chat_template: a preset (chatml, llama3, gemma, qwen, mistral, alpaca) or a Jinja file, instead of the model's.
        max_new_tokens: maximum number of tokens of an answer.
        temperature: of the softmax; 0 chooses the likeliest token each time.
        top_k: sample among the k likeliest tokens.
        top_p: sample among the likeliest tokens that together have this probability.
        min_p: sample among tokens with at least this share of the likeliest one's probability.
        repetition_penalty: divides the logits of tokens that have occurred; 1: none.
        seed: of the sampling; null: a different one each time.
        device: where to run; auto takes the accelerator if there is one.
        adapter: folder of an adapter to apply to the model.
    """
    from lit_gpt.data.chat import ChatRenderer, load_chat_template, template_of
    from lit_gpt.generation import Engine, EngineLoop, SamplingParams
    from lit_gpt.generation.chat_session import ChatSession, converse
    from lit_gpt.generation.loading import load_for_generation

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    network, tokenizer = load_for_generation(model, device, adapter)
    template = template_of(tokenizer) if chat_template is None else load_chat_template(chat_template)
    renderer = ChatRenderer(tokenizer, template)
    engine = Engine(network, tokenizer, max_batch_size=1)
    loop = EngineLoop(engine)
    try:
        converse(ChatSession(loop, renderer, params, engine.max_length, system))
    finally:
        loop.close(drain=False)
