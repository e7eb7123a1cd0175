"""Talk with a model in the terminal."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lit_gpt.generation.chat_session import ChatSession

HELP = """/reset          forget the conversation (the system's words stay)
/system TEXT    what the model is told first, from now on; without a text: nothing
/save FILE      write the conversation as a row of JSON, {"messages": [...]}
/help           this list
/exit           leave (so does Ctrl-D); Ctrl-C stops an answer"""


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
    """Talk with a model in the terminal; its answers appear as they are written.

    Lines that begin with a slash are commands: /reset, /system, /save, /help, /exit. Ctrl-C stops an answer.

    Args:
        model: a run's folder, a checkpoint, a bundle, or a Hugging Face folder or hub name.
        system: what the model is told first.
        chat_template: a preset (chatml, llama3, gemma, qwen, mistral, alpaca) or a Jinja file, instead of the model's.
        max_new_tokens: tokens of an answer at most.
        temperature: of the softmax; 0 takes the likeliest token each time.
        top_k: sample among the k likeliest tokens.
        top_p: sample among the likeliest tokens that together have this probability.
        min_p: sample among tokens with at least this share of the likeliest one's probability.
        repetition_penalty: divides the logits of tokens that have occurred; 1: none.
        seed: of the sampling; null: another each time.
        device: where to run; auto takes the accelerator if there is one.
        adapter: folder of an adapter for the model.
    """
    from lit_gpt.data.chat import ChatRenderer, load_chat_template, template_of
    from lit_gpt.generation import Engine, EngineLoop, SamplingParams
    from lit_gpt.generation.chat_session import ChatSession
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
        _converse(ChatSession(loop, renderer, params, engine.max_length, system))
    finally:
        loop.close(drain=False)


def _converse(session: "ChatSession") -> None:
    import sys

    from lit_gpt.errors import UserError

    on_terminal = sys.stdin.isatty()
    if on_terminal:
        import readline  # noqa: F401 (makes `input` an editable line with history)

        print("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.", file=sys.stderr)
    while True:
        try:
            line = input("> " if on_terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:  # at the prompt: a fresh line, as in a shell
            print()
            continue
        if line == "/exit":
            return
        if not line:
            continue
        try:
            if line.startswith("/"):
                print(_command(session, line), file=sys.stderr)
            else:
                _answer(session, line)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def _answer(session: "ChatSession", question: str) -> None:
    import sys
    from contextlib import closing

    stopped = ""
    with closing(session.ask(question)) as pieces:
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            stopped = ", stopped"
    print(flush=True)
    stats = session.stats
    if stats is None:
        return
    dropped = f", {stats.num_dropped} oldest messages no longer fit" if stats.num_dropped else ""
    cut = ", cut off at its limit" if stats.finish_reason == "length" else ""
    print(
        f"[{stats.num_tokens} tokens, {stats.tokens_per_second:.1f} tokens/s, first after "
        f"{stats.seconds_to_first:.2f} s{stopped}{cut}{dropped}]",
        file=sys.stderr,
    )


def _command(session: "ChatSession", line: str) -> str:
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word == "/reset":
        session.reset()
        return "the conversation is forgotten"
    if word == "/system":
        session.system = rest or None
        return f"the model is told: {rest}" if rest else "the model is told nothing beforehand"
    if word == "/save":
        if not rest:
            return "name a file: /save FILE"
        session.save(rest)
        return f"saved {len(session.messages)} messages to {rest}"
    return HELP if word == "/help" else f"{word} is no command\n{HELP}"
