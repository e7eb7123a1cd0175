"""What a request says, looked at by the guards before the model reads it."""

from collections.abc import Sequence
from typing import Any

from lit_gpt.data.chat import normalise_messages
from lit_gpt.serving.guards.chain import GuardChain
from lit_gpt.serving.model import ServedModel

_NAMES = frozenset({"role", "type", "id", "tool_call_id", "name"})
"""Fields of a message whose words are the API's or the program's, not a person's."""


def guarded_messages(chain: GuardChain, messages: Sequence[Any]) -> list[Any]:
    """A conversation with what may go in: contents, and arguments of calls.

    Raises:
        ApiError: A guard has stopped it.
        UserError: What was sent is no conversation.
    """
    if not chain.looks_at("input"):
        return list(messages)
    return [_mapped(chain, dict(message), "messages") for message in normalise_messages(messages)]


def guarded_tools(chain: GuardChain, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools with the descriptions that may go in.

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


def _mapped(chain: GuardChain, value: Any, param: str) -> Any:
    if isinstance(value, str):
        return chain.request(value, param)
    if isinstance(value, dict):
        return {key: one if key in _NAMES else _mapped(chain, one, param) for key, one in value.items()}
    return [_mapped(chain, one, param) for one in value] if isinstance(value, list) else value


def _described(chain: GuardChain, value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: chain.request(one, "tools")
            if key == "description" and isinstance(one, str)
            else _described(chain, one)
            for key, one in value.items()
        }
    return [_described(chain, one) for one in value] if isinstance(value, list) else value
