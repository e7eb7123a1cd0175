"""What a request says, looked at by the guards before the model reads it."""

import re
from collections.abc import Sequence
from typing import Any

from lit_gpt.data.chat import normalise_messages
from lit_gpt.serving.guards.chain import GuardChain
from lit_gpt.serving.model import ServedModel

_WORDS = frozenset({"role", "type"})
"""Fields of a message and of its calls that have one of few values."""
_IDS = frozenset({"id", "tool_call_id"})
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a program makes up; anything else under those names is looked at."""
_SCHEMA_TEXTS = frozenset({"description", "title", "default", "const", "enum", "examples", "$comment"})
"""Of a tool's schema: what a person may have written there; the rest is structure."""


def guarded_messages(chain: GuardChain, messages: Sequence[Any]) -> list[Any]:
    """A conversation with what may go in: contents, and arguments of calls.

    Raises:
        ApiError: A guard has stopped it.
        UserError: What was sent is no conversation.
    """
    if not chain.looks_at("input"):
        return list(messages)
    return [_message(chain, dict(message)) for message in normalise_messages(messages)]


def guarded_tools(chain: GuardChain, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools with the descriptions and values that may go in.

    Raises:
        ApiError: A guard has stopped one.
    """
    if not chain.looks_at("input"):
        return tools
    return [_described(chain, tool) for tool in tools]


def guarded_prompt(chain: GuardChain, served: ServedModel, prompt: str | list[int], param: str) -> str | list[int]:
    """A text, or ids, with what may go in; ids stay ids where nothing is changed in their text.

    Raises:
        ApiError: A guard has stopped it.
    """
    if not chain.looks_at("input"):
        return prompt
    if isinstance(prompt, str):
        return chain.request(prompt, param)
    if max(prompt) >= served.tokenizer.vocab_size:
        return prompt  # no text; the engine refuses what its model does not have either
    text = served.tokenizer.decode(prompt)
    changed = chain.request(text, param)
    return prompt if changed == text else changed


def _message(chain: GuardChain, message: dict[str, Any]) -> dict[str, Any]:
    """Everything in it but what cannot hold a text; of a call's arguments all, whatever their names."""
    result: dict[str, Any] = {}
    for key, value in message.items():
        if key in _WORDS or (key in _IDS and isinstance(value, str) and _ID.fullmatch(value)):
            result[key] = value
        elif key == "tool_calls":
            result[key] = [_message(chain, call) for call in value]
        elif key == "function":
            result[key] = _message(chain, value)
        else:
            result[key] = _mapped(chain, value, "messages")
    return result


def _mapped(chain: GuardChain, value: Any, param: str) -> Any:
    if isinstance(value, str):
        return chain.request(value, param)
    if isinstance(value, dict):
        return {chain.request(key, param): _mapped(chain, one, param) for key, one in value.items()}
    return [_mapped(chain, one, param) for one in value] if isinstance(value, list) else value


def _described(chain: GuardChain, value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _mapped(chain, one, "tools") if key in _SCHEMA_TEXTS else _described(chain, one)
            for key, one in value.items()
        }
    return [_described(chain, one) for one in value] if isinstance(value, list) else value
