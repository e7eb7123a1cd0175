"""The answers of a request, looked at by the guards before its client reads them."""

from collections.abc import Sequence
from dataclasses import replace

import anyio

from lit_gpt.generation.params import TokenEvent
from lit_gpt.serving.active import ActiveRequest
from lit_gpt.serving.answers import Answer, Delta
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.guards.chain import CONTENT_FILTER, GuardChain, OutputGuard


class GuardedAnswers:
    """The sequences of a request as they grow, and what of them may be seen.

    Args:
        chain: The guards.
        active: The request: a sequence whose answer is stopped gives its place back.
        answers: Of its sequences.
    """

    def __init__(self, chain: GuardChain, active: ActiveRequest, answers: Sequence[Answer]) -> None:
        self._chain = chain
        self._active = active
        self._answers = answers
        self._looks = chain.looks_at("output")
        self._guards = [OutputGuard(chain) for _ in answers] if self._looks else []
        self._wholes = [Delta() for _ in answers]

    async def feed(self, index: int, events: Sequence[TokenEvent]) -> Delta:
        """Take the next events of a sequence and return what may be seen of them."""
        answer = self._answers[index]
        if not self._looks:
            return answer.feed(events)
        if self._guards[index].blocked:
            return Delta()
        added = answer.feed(events)
        if not added:
            return added
        # Beside the event loop: a detector or a classifier may take its time.
        added = await anyio.to_thread.run_sync(self._seen, index, added)
        if self._guards[index].blocked:
            self._active.stop(index)
        if not answer.streamed:
            whole = self._wholes[index]
            whole.text += added.text
            whole.calls += added.calls
            whole.finish_reason = added.finish_reason
        return added

    def whole(self, index: int) -> Delta:
        """All that may be seen of a sequence that was not streamed."""
        return self._wholes[index] if self._looks else self._answers[index].whole

    def _seen(self, index: int, added: Delta) -> Delta:
        guard = self._guards[index]
        # A call ends the text before it: nothing in that can go on in the call.
        text = guard.feed(added.text, last=added.finish_reason is not None or bool(added.calls))
        calls = []
        for call in added.calls:
            inside = OutputGuard(self._chain)
            arguments = inside.feed(call.arguments, last=True)
            guard.blocked = guard.blocked or inside.blocked
            if guard.blocked:
                break
            calls.append(replace(call, arguments=arguments))
        return Delta(text, calls, [], CONTENT_FILTER if guard.blocked else added.finish_reason)


def refuse_logprobs(chain: GuardChain, asked: bool) -> None:
    """Log-probabilities would tell the tokens that guards take out.

    Raises:
        ApiError: 400.
    """
    if asked and chain.looks_at("output"):
        message = "this server's guards look at answers, so it gives no logprobs"
        raise ApiError(400, message, "logprobs_not_available", "logprobs")
