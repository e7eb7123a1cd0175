"""All guards of a server, one after the other: what they do to requests and answers, and what they count."""

import re
from collections.abc import Sequence
from typing import Any

from lit_gpt.data.chat import Message
from lit_gpt.serving.errors import LOGGER, ApiError, describe_exception
from lit_gpt.serving.guards.base import Direction, Guard, Passed, TextGuard
from lit_gpt.serving.metrics import Metrics
from lit_gpt.serving.model import ServedModel

CONTENT_FILTER = "content_filter"
"""OpenAI's name, of the finish_reason and of the error's code."""
_ENUM_FIELDS = frozenset({"role", "type"})
"""Fields of a message and of its calls that have one of few values."""
_ID_FIELDS = frozenset({"id", "tool_call_id"})
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""The ids that programs generate; anything else in those fields is checked."""
_SCHEMA_TEXTS = frozenset({"description", "title", "default", "const", "enum", "examples", "$comment"})
"""Keywords of a tool's schema that may hold a person's text; the rest is structure."""


class GuardChain:
    """The guards that each text passes in turn.

    Args:
        guards: In order; none: everything passes.
        metrics: Where findings are counted, by guard, direction and action; never what was found.
    """

    def __init__(self, guards: Sequence[Guard], metrics: Metrics) -> None:
        self.guards = tuple(guards)
        self._metrics = metrics

    def checks(self, direction: Direction) -> bool:
        """Return whether any guard checks texts in this direction."""
        return any(guard.actions[direction] != "pass" for guard in self.guards)

    def request(self, text: str, param: str) -> str:
        """Return what of a request's text may go to the model.

        Args:
            text: Of a message or a prompt.
            param: The field that it is from, for the error.

        Raises:
            ApiError: If a guard blocks it: 400, `content_filter`.
        """
        for guard in self.guards:
            action = guard.actions["input"]
            if action == "pass":
                continue
            passed = self.run(guard, guard.text_guard(action), "input", text, True)
            if passed.blocked:
                message = f"the request was blocked by this server's guard {guard.name!r}"
                raise ApiError(400, message, CONTENT_FILTER, param)
            text = passed.text
        return text

    def run(self, guard: Guard, text_guard: TextGuard, direction: Direction, text: str, last: bool) -> Passed:
        """Let a guard check a piece of a text, and count what it did.

        Raises:
            ApiError: If it fails: 500, and nothing passes.
        """
        try:
            passed = text_guard.feed(text, last)
        except Exception as error:
            LOGGER.error("the guard %s failed: %s", guard.name, describe_exception(error))
            message = f"this server's guard {guard.name!r} failed, so nothing passes it; its log says more"
            raise ApiError(500, message, "guard_failed") from error
        for action, number in (("redact", passed.redacted), ("block", int(passed.blocked))):
            if number:
                self._metrics.guarded.labels(guard.name, direction, action).inc(number)
        return passed

    # ------------------------------------------------------------------ requests

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """Return a conversation with what may go in: contents, and arguments of calls.

        Args:
            messages: Normalised ones.

        Raises:
            ApiError: If a guard blocks it.
        """
        if not self.checks("input"):
            return list(messages)
        return [self._message(dict(message)) for message in messages]  # type: ignore[misc]

    def tools(self, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return tools with the descriptions and values that may go in.

        Raises:
            ApiError: If a guard blocks one.
        """
        return [self._described(tool) for tool in tools] if self.checks("input") else tools

    def prompt(self, served: ServedModel, prompt: str | list[int], param: str) -> str | list[int]:
        """Return a text, or ids, with what may go in; ids stay ids where nothing is changed in their text.

        Raises:
            ApiError: If a guard blocks it.
        """
        if not self.checks("input"):
            return prompt
        if isinstance(prompt, str):
            return self.request(prompt, param)
        if max(prompt) >= served.tokenizer.vocab_size:
            return prompt  # not a text; the engine refuses ids that its model does not have
        text = served.tokenizer.decode(prompt)
        changed = self.request(text, param)
        return prompt if changed == text else changed

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        """Check everything except fields that cannot hold a text; of a call's arguments all, whatever their names."""
        result: dict[str, Any] = {}
        for key, value in message.items():
            if key in _ENUM_FIELDS or (key in _ID_FIELDS and isinstance(value, str) and _ID.fullmatch(value)):
                result[key] = value
            elif key == "tool_calls":
                result[key] = [self._message(call) for call in value]
            elif key == "function":
                result[key] = self._message(value)
            else:
                result[key] = self._mapped(value, "messages")
        return result

    def _mapped(self, value: Any, param: str) -> Any:
        if isinstance(value, str):
            return self.request(value, param)
        if isinstance(value, dict):
            return {self.request(key, param): self._mapped(one, param) for key, one in value.items()}
        return [self._mapped(one, param) for one in value] if isinstance(value, list) else value

    def _described(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: self._mapped(one, "tools") if key in _SCHEMA_TEXTS else self._described(one)
                for key, one in value.items()
            }
        return [self._described(one) for one in value] if isinstance(value, list) else value


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
        """Check the next piece and return what may pass; once `blocked`, nothing does."""
        if self.blocked:
            return ""
        for guard, text_guard in self._texts:
            passed = self._chain.run(guard, text_guard, "output", text, last)
            text = passed.text
            if passed.blocked:
                # What stands before the finding still goes through the guards that follow, and ends there.
                self.blocked = last = True
        return text
