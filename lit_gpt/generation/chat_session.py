"""A chat with a model: the conversation history, the part that fits the context, and streamed answers."""

import json
import sys
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from lit_gpt.atomic import atomic_file
from lit_gpt.checks import local_path
from lit_gpt.data.chat import ChatRenderer, Message
from lit_gpt.errors import UserError
from lit_gpt.generation.loop import EngineLoop, RequestHandle
from lit_gpt.generation.request import FinishReason, SamplingParams

EXITS = ("/exit", "/quit", "/q", "/bye")
HELP = """/reset          forget the conversation (the system message stays)
/system TEXT    set the system message; without TEXT, remove it
/save FILE      write the conversation as a JSON object, {"messages": [...]}
/help           show this list
/exit           leave (so do /quit, /q, /bye and Ctrl-D); Ctrl-C stops an answer"""


@dataclass(frozen=True)
class AnswerStats:
    """Statistics of the last answer."""

    num_tokens: int
    seconds_to_first: float
    """Time from the question to the first token."""
    tokens_per_second: float
    """Rate after the first token; 0 for an answer of one token."""
    finish_reason: FinishReason | None
    """Why generation ended; None = the reader stopped reading before the end."""
    num_dropped: int
    """Number of oldest messages that the model did not see, because the context is full."""


class ChatSession:
    """The state of one conversation.

    Args:
        loop: Engine loop that runs the model.
        renderer: The model's chat template.
        params: Sampling settings for answers, to which the template's stop tokens are added. With a seed, answer
            number i has seed + i.
        max_length: Context length in tokens.
        system: The system message; None = none.
    """

    def __init__(
        self,
        loop: EngineLoop,
        renderer: ChatRenderer,
        params: SamplingParams,
        max_length: int,
        system: str | None = None,
    ) -> None:
        self._loop, self._renderer, self._max_length = loop, renderer, max_length
        stops = tuple(sorted({*params.stop_token_ids, *renderer.stop_ids}))
        self._params = replace(params, stop_token_ids=stops)
        self._num_answers = 0
        self.system = system
        self.messages: list[Message] = []
        """Turns of user and assistant, without the system message."""
        self.stats: AnswerStats | None = None

    def reset(self) -> None:
        """Clear the turns; the system message is kept."""
        self.messages.clear()

    def save(self, path: str | Path) -> None:
        """Write the conversation as one line of JSON, `{"messages": [...]}`, the format of instruction data.

        Raises:
            UserError: If the file cannot be written.
        """
        line = json.dumps({"messages": self._with_system(self.messages)}, ensure_ascii=False) + "\n"
        try:
            with atomic_file(local_path("file", path)) as file:
                file.write_text(line, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error}") from error

    def ask(self, text: str) -> Generator[str, None, None]:
        """Yield the answer piece by piece; closing the iterator, also by an exception, cancels the request.

        The text generated so far becomes the assistant's turn; a question without an answer is removed.

        Raises:
            UserError: If the question alone does not fit in the context.
            RuntimeError: If the model fails.
        """
        self.messages.append(Message(role="user", content=text))
        try:
            ids, num_dropped = self._prompt()
            capacity = self._max_length - len(ids)
            seed = None if self._params.seed is None else self._params.seed + self._num_answers
            params = replace(self._params, seed=seed, max_new_tokens=max(1, min(self._params.max_new_tokens, capacity)))
            handle = self._loop.submit(ids, params)
        except Exception:
            self.messages.pop()
            raise
        self._num_answers += 1
        yield from self._answer(handle, num_dropped)

    def _answer(self, handle: RequestHandle, num_dropped: int) -> Generator[str, None, None]:
        pieces: list[str] = []
        num_tokens, first, last = 0, 0.0, 0.0
        reason: FinishReason | None = None
        try:
            for event in handle:
                last = time.monotonic()
                if event.token_id is not None:
                    num_tokens += 1
                    first = first or last
                if event.text:
                    pieces.append(event.text)
                    yield event.text
                reason = event.finish_reason
                if event.error is not None:
                    raise RuntimeError(event.error)
        finally:
            handle.cancel()
            answer = "".join(pieces)
            if answer:
                self.messages.append(Message(role="assistant", content=answer))
            else:
                self.messages.pop()
            speed = (num_tokens - 1) / (last - first) if last > first else 0.0
            waited = first - handle.submitted_at if num_tokens else 0.0
            self.stats = AnswerStats(num_tokens, waited, speed, reason, num_dropped)

    def _prompt(self) -> tuple[list[int], int]:
        """Return the token ids of the system message and the latest turns that fit, and the number of dropped turns."""
        reserved = min(self._params.max_new_tokens, self._max_length // 4)
        users = [number for number, turn in enumerate(self.messages) if turn["role"] == "user"]
        ids: list[int] = []
        for first in users:
            turns = self._with_system(self.messages[first:])
            ids = self._renderer(turns, add_generation_prompt=True).ids
            if len(ids) + reserved <= self._max_length:
                return ids, first
        if len(ids) < self._max_length:
            return ids, users[-1]
        raise UserError(
            f"the question has {len(ids)} tokens with its template, more than the context of {self._max_length}"
        )

    def _with_system(self, turns: list[Message]) -> list[Message]:
        return turns if self.system is None else [Message(role="system", content=self.system), *turns]


# ------------------------------------------------------------------ in the terminal


def converse(session: ChatSession) -> None:
    """Read questions from standard input and print the answers, until the user exits or the input ends.

    Statistics, replies to commands and errors go to standard error, so that only the answers are redirected.
    """
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        import readline  # noqa: F401 (makes `input` an editable line with history)

        print("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.", file=sys.stderr)
    while True:
        try:
            line = input("> " if on_terminal else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:  # at the prompt: start a new line, as in a shell
            print()
            continue
        if line in EXITS:
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


def _answer(session: ChatSession, question: str) -> None:
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


def _command(session: ChatSession, line: str) -> str:
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word == "/reset":
        session.reset()
        return "the conversation is reset"
    if word == "/system":
        session.system = rest or None
        return f"system message: {rest}" if rest else "no system message"
    if word == "/save":
        if not rest:
            return "name a file: /save FILE"
        session.save(rest)
        return f"saved {len(session.messages)} messages to {rest}"
    return HELP if word == "/help" else f"{word} is not a command\n{HELP}"
