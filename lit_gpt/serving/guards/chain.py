"""All guards of a server, one after the other, and what they count."""

from collections.abc import Sequence

from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.guards.base import Direction, Guard, Passed, TextGuard
from lit_gpt.serving.metrics import Metrics
from lit_gpt.serving.records import LOGGER, describe_fault

CONTENT_FILTER = "content_filter"
"""OpenAI's name: of the finish_reason, and of the error's code."""


class GuardChain:
    """The guards that each text passes in turn.

    Args:
        guards: In order; none: everything passes.
        metrics: Where findings are counted, by guard, direction and action; never what was found.
    """

    def __init__(self, guards: Sequence[Guard], metrics: Metrics) -> None:
        self.guards = tuple(guards)
        self._metrics = metrics

    def looks_at(self, direction: Direction) -> bool:
        """Whether any guard looks at texts in this direction."""
        return any(guard.actions[direction] != "pass" for guard in self.guards)

    def request(self, text: str, param: str) -> str:
        """Return what of a request's text may go to the model.

        Args:
            text: Of a message or a prompt.
            param: The field that it is from, for the error.

        Raises:
            ApiError: A guard has stopped it: 400, `content_filter`.
        """
        for guard in self.guards:
            action = guard.actions["input"]
            if action == "pass":
                continue
            passed = self.look(guard, guard.text_guard(action), "input", text, True)
            if passed.blocked:
                message = f"the request was stopped by this server's guard {guard.name!r}"
                raise ApiError(400, message, CONTENT_FILTER, param)
            text = passed.text
        return text

    def look(self, guard: Guard, one: TextGuard, direction: Direction, text: str, last: bool) -> Passed:
        """Let a guard look at a piece of a text, and count what it did.

        Raises:
            ApiError: It failed: 500, and nothing passes.
        """
        try:
            passed = one.feed(text, last)
        except Exception as error:
            LOGGER.error("the guard %s failed: %s", guard.name, describe_fault(error))
            message = f"this server's guard {guard.name!r} failed, so nothing passes it; its log says more"
            raise ApiError(500, message, "guard_failed") from error
        for action, number in (("redact", passed.redacted), ("block", int(passed.blocked))):
            if number:
                self._metrics.guarded.labels(guard.name, direction, action).inc(number)
        return passed


class OutputGuard:
    """One answer on its way out, through every guard.

    Args:
        chain: The guards.
    """

    def __init__(self, chain: GuardChain) -> None:
        self._chain = chain
        guards = [guard for guard in chain.guards if guard.actions["output"] != "pass"]
        self._texts = [(guard, guard.text_guard(guard.actions["output"])) for guard in guards]
        self.blocked = False

    def feed(self, text: str, last: bool = False) -> str:
        """Take the next piece and return what may pass on; once `blocked`, nothing does."""
        if self.blocked:
            return ""
        for guard, one in self._texts:
            passed = self._chain.look(guard, one, "output", text, last)
            text = passed.text
            if passed.blocked:
                # What stands before the finding still goes through the guards behind it, and ends there.
                self.blocked = last = True
        return text
