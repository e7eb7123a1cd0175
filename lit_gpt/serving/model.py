"""The model that is served: its engine, how its conversations are written, and where it is measured."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_gpt.data.chat import ChatRenderer, check_messages, normalise_messages
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation.engine import Engine, EngineStats
from lit_gpt.generation.loop import EngineLoop
from lit_gpt.generation.text import opened
from lit_gpt.models import GPT
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.tools import ToolForm, tool_form

ALWAYS_READ = 65_536
"""Characters: so few are tokenised in any case, in some milliseconds."""


@dataclass(frozen=True)
class ServedModel:
    """A model on its device, ready to answer.

    Attributes:
        name: That requests name it by.
        network: In eval mode; embeddings are read from it beside the engine, which never writes to it.
        tokenizer: Its own.
        loop: Of its engine.
        max_length: Tokens of prompt and answer together.
        max_batch_size: Sequences that the engine works on at a time.
        renderer: Of its chat template; None: the model only goes on with texts.
        created: Seconds since 1970, for the list of models.
    """

    name: str
    network: GPT
    tokenizer: Tokenizer
    loop: EngineLoop
    max_length: int
    max_batch_size: int
    renderer: ChatRenderer | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(
        cls, name: str, network: GPT, tokenizer: Tokenizer, engine: Engine, renderer: ChatRenderer | None
    ) -> "ServedModel":
        """Start an engine's loop and serve it."""
        return cls(name, network, tokenizer, EngineLoop(engine), engine.max_length, engine.max_batch_size, renderer)

    def stats(self) -> EngineStats:
        """Of the engine."""
        return self.loop.stats()

    @property
    def tool_form(self) -> ToolForm | None:
        """How this model writes a call; None: its template has no form for tools."""
        return None if self.renderer is None else tool_form(self.renderer.template.source)

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the vocabulary's longest token."""
        return int(self.tokenizer.byte_lengths.max())

    def check_size(self, *values: Any, max_length: int | None = None) -> None:
        """Refuse texts that cannot fit before guards, a template and the tokenizer have looked at their megabytes.

        Args:
            values: Messages, tools or prompts: the characters of all texts in one of them count.
            max_length: Tokens that may be; None: prompt and answer together.

        Raises:
            ApiError: 400, if it were too long with the longest token throughout.
        """
        length = self.max_length if max_length is None else max_length
        for value in values:
            count = _num_characters(value)
            if count > max(ALWAYS_READ, length * self.longest_token):
                message = f"the prompt has {count} characters, more than the context of {length} tokens holds"
                raise ApiError(400, message, "context_length_exceeded")

    def text_ids(self, text: str) -> list[int]:
        """A prompt as the start of a document, as in training."""
        return opened(self.tokenizer, self.tokenizer.encode(text).tolist())

    def chat_ids(self, messages: Sequence[Any], tools: Sequence[dict[str, Any]]) -> list[int]:
        """A conversation up to where the assistant begins to speak.

        Raises:
            UserError: The model has no chat template, or this one does not render the conversation.
        """
        if self.renderer is None:
            raise UserError(
                "this model has no chat template, so it cannot answer messages; use /v1/completions, or start the "
                "server with --chat_template"
            )
        turns = normalise_messages(messages)
        check_messages(turns)
        if turns[-1]["role"] == "assistant":
            raise UserError("the last message is the assistant's; end with the user's or a tool's")
        return self.renderer(turns, True, tools, needs_mask=False).ids

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> list[float]:
        """Mean over a text's tokens of the last hidden states, after the final norm: (C,).

        Args:
            ids: At least one, at most as many as the context holds.
        """
        device = next(self.network.parameters()).device
        hidden: Tensor = self.network(torch.tensor([list(ids)], device=device), head_fn=_hidden)
        mean: list[float] = hidden[0].float().mean(dim=0).tolist()
        return mean


def _num_characters(value: Any) -> int:
    """Of all texts in a JSON value, which a body's bound keeps shallow."""
    if isinstance(value, str):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_num_characters, parts))


def _hidden(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return hidden
