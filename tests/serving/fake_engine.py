"""An engine that says what it is told: the server's tests are about the server, not about a model."""

import threading
from collections.abc import Callable, Sequence

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.generation.engine import EngineStats
from lit_gpt.generation.request import SamplingParams, TokenEvent


class FakeEngine:
    """`Engine`'s interface; each request is answered with `reply(prompt text, params)`, a token a step.

    A reply may be None: then it goes on for ever, until it is cancelled.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        reply: Callable[[str, SamplingParams], str | None],
        max_batch_size: int = 4,
        max_length: int = 4096,
    ) -> None:
        self.tokenizer, self.reply = tokenizer, reply
        self.max_batch_size, self.max_length = max_batch_size, max_length
        self.running: dict[str, tuple[list[int], SamplingParams, list[int]]] = {}
        self.waiting: dict[str, tuple[list[int], SamplingParams, list[int]]] = {}
        self.pace_seconds = 0.0
        self.seen: list[tuple[list[int], SamplingParams]] = []
        self.idle = threading.Event()
        self.idle.set()
        self.most_running = self.most_waiting = self.steps = self.generated = 0
        self.cancelled: list[str] = []

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Everything is accepted."""

    def add(self, prompt_ids: Sequence[int], params: SamplingParams, request_id: str, matcher=None) -> None:
        prompt = list(prompt_ids)
        self.seen.append((prompt, params))
        reply = self.reply(self.tokenizer.decode(prompt), params)
        ids = None if reply is None else [*self.tokenizer.encode(reply).tolist(), self.tokenizer.separator_id]
        self.idle.clear()
        self.waiting[request_id] = (ids, params, [])
        self.most_waiting = max(self.most_waiting, len(self.waiting))

    def cancel(self, request_id: str) -> None:
        if request_id in self.running or request_id in self.waiting:
            self.cancelled.append(request_id)

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def step(self) -> list[TokenEvent]:
        events = []
        endless = any(ids is None for ids, _, _ in self.running.values())
        # As fast as Python can, an endless reply would leave the event loop no time to see who has left.
        if self.pace_seconds or endless:
            threading.Event().wait(self.pace_seconds or 0.001)
        while self.cancelled:
            name = self.cancelled.pop()
            if self.running.pop(name, None) or self.waiting.pop(name, None):
                events.append(TokenEvent(name, None, finish_reason="cancelled"))
        while self.waiting and len(self.running) < self.max_batch_size:
            name = next(iter(self.waiting))
            self.running[name] = self.waiting.pop(name)
        self.most_running = max(self.most_running, len(self.running))
        self.steps += 1
        for name, (ids, params, written) in list(self.running.items()):
            token = self.tokenizer.encode(" a")[0] if ids is None else ids[len(written)]
            recent = written[-8:]
            stops = token == self.tokenizer.separator_id
            written.append(int(token))
            text = "" if stops else self.tokenizer.decode([*recent, int(token)])[len(self.tokenizer.decode(recent)) :]
            reason = "stop" if stops else "length" if ids and len(written) == params.max_new_tokens else None
            self.generated += 1
            logprob = None if params.logprobs is None else -0.5
            events.append(TokenEvent(name, int(token), text, logprob, (), reason))
            if reason:
                del self.running[name]
        if not self.has_work:
            self.idle.set()
        return events

    def fail_all(self, error: str) -> list[TokenEvent]:
        names = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        self.idle.set()
        return [TokenEvent(name, None, finish_reason="error", error=error) for name in names]

    def stats(self) -> EngineStats:
        used = sum(len(written) for _, _, written in list(self.running.values()))
        return EngineStats(len(self.waiting), len(self.running), used, 4096, 1 << 20, 0, 0, self.generated, self.steps)
