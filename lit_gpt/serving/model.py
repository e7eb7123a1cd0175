"""The served model: its engine, prompt tokenization, embeddings and prompt log-probabilities."""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.data.chat import ChatRenderer, Message
from lit_gpt.data.compiled_bpe import byte_alphabet
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation import Engine, SamplingParams
from lit_gpt.generation.engine import EngineStats
from lit_gpt.generation.loading import (
    load_for_generation,
    load_speculation,
    make_renderer,
    resolve_for_generation,
    short_name,
)
from lit_gpt.generation.loop import EngineLoop
from lit_gpt.generation.text import opened
from lit_gpt.models import GPT
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.tools import ToolForm, tool_form

ALWAYS_READ_CHARACTERS = 65_536
"""Texts up to this length are always tokenized, which takes some milliseconds."""
_HEAD_POSITIONS = 256
"""Number of positions whose logits are in memory at once when prompt log-probabilities are computed."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenLogprob(NamedTuple):
    """A token of a prompt, with its log-probability given the preceding tokens.

    Attributes:
        token_id: Token id.
        logprob: Natural logarithm; None for the first token, which is not predicted.
        top: The most likely tokens with their log-probabilities, most likely first.
    """

    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ServedModel:
    """A loaded model on its device.

    Attributes:
        name: Model name in requests.
        network: The model in eval mode. Embeddings and prompt log-probabilities are computed from it concurrently with
            the engine; neither modifies it.
        tokenizer: Tokenizer of the model.
        loop: Loop that runs its engine.
        max_length: Maximum number of tokens of prompt and answer together.
        max_batch_size: Maximum number of sequences that the engine processes at a time.
        renderer: Renderer of the chat template; None: it has no template, and only continues texts.
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
        """Start an engine's loop and return the served model."""
        return cls(name, network, tokenizer, EngineLoop(engine), engine.max_length, engine.max_batch_size, renderer)

    def stats(self) -> EngineStats:
        """Return the engine's statistics."""
        return self.loop.stats()

    @property
    def tool_form(self) -> ToolForm | None:
        """Format in which the model writes a tool call; None: its template has no format for tools."""
        return None if self.renderer is None else tool_form(self.renderer.template.source)

    @cached_property
    def token_text(self) -> "TokenText":
        """Bytes and text of single tokens."""
        return TokenText(self.tokenizer)

    @cached_property
    def longest_token(self) -> int:
        """Length of the vocabulary's longest token in bytes."""
        return int(self.tokenizer.byte_lengths.max())

    @cached_property
    def _special_tokens(self) -> tuple[Any, re.Pattern[str] | None]:
        """A copy of the tokenizer's backend that parses special tokens, and a pattern of their texts."""
        import tokenizers

        # The tokenizer itself reads them as ordinary text, so that training data cannot forge the end of a document.
        backend = tokenizers.Tokenizer.from_str(self.tokenizer.backend.to_str())
        backend.encode_special_tokens = False
        texts = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
        pattern = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None
        return backend, pattern

    def check_size(self, *values: Any, max_length: int | None = None) -> None:
        """Reject texts that cannot fit before guards, a template and the tokenizer process megabytes of them.

        Args:
            values: Messages, tools or prompts; the characters of all texts in them are counted.
            max_length: Maximum number of tokens; None: that of prompt and answer together.

        Raises:
            ApiError: 400 if the texts would be too long even if every token were the longest one.
        """
        length = self.max_length if max_length is None else max_length
        for value in values:
            count = _num_characters(value)
            if count > max(ALWAYS_READ_CHARACTERS, length * self.longest_token):
                message = f"the prompt has {count} characters, more than the context of {length} tokens holds"
                raise ApiError(400, message, "context_length_exceeded")

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text as the start of a document, as in training; special tokens are ordinary text."""
        return opened(self.tokenizer, self.tokenizer.encode(text).tolist())

    def spells_special_tokens(self, text: str) -> bool:
        """Return whether a text contains the name of a special token, such as `<|im_start|>`."""
        pattern = self._special_tokens[1]
        return pattern is not None and pattern.search(text) is not None

    def prompt_ids(self, text: str) -> list[int]:
        """Return the ids of a prompt, parsing special tokens such as `<|im_start|>`.

        Clients that render a chat template themselves thus get the ids that the template means. Opening tokens (such as
        the beginning-of-text token) are put before the prompt unless it starts with them already.
        """
        if not self.spells_special_tokens(text):
            return self.text_ids(text)
        ids = list(self._special_tokens[0].encode(text, add_special_tokens=False).ids)
        opening = list(self.tokenizer.opening_ids)
        return ids if ids[: len(opening)] == opening else opened(self.tokenizer, ids)

    def chat_ids(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[int]:
        """Return the ids of a conversation up to the start of the assistant's turn.

        Args:
            messages: Normalized messages, as returned by `lit_gpt.serving.chat.conversation`.
            tools: Tools that the assistant may call.

        Raises:
            UserError: If the model has no chat template, or it does not render the conversation.
        """
        if self.renderer is None:
            raise UserError(
                "this model has no chat template, so it cannot answer messages; use /v1/completions, or start the "
                "server with --chat_template"
            )
        return self.renderer(messages, True, tools).ids

    def warm_up(self) -> None:
        """Answer a short request, so that no client waits for libraries, kernels and caches to be loaded."""
        text = "a"
        ids = self.prompt_ids(text)
        if self.renderer is not None:
            with suppress(UserError):  # a template may need more than a message
                ids = self.chat_ids([Message(role="user", content=text)], [])
        for _ in self.loop.submit(ids[: self.max_length // 2], SamplingParams(max_new_tokens=2, ignore_eos=True)):
            pass
        self.check_size(text)

    @torch.inference_mode()
    def embed(self, ids: Sequence[int]) -> list[float]:
        """Return the mean over a text's tokens of the last hidden states, after the final norm: (C,).

        Args:
            ids: Between one and as many ids as the context holds.
        """
        hidden = self._hidden_states(ids)[0]
        mean: list[float] = hidden[0].float().mean(dim=0).tolist()
        return mean

    @torch.inference_mode()
    def prompt_logprobs(self, ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
        """Return the model's log-probability of each token of a prompt given those before it.

        Args:
            ids: (T,) between one and as many ids as the context holds.
            num_top: Number of most likely tokens to report at each position.
        """
        hidden, weight, bias = self._hidden_states(ids)
        results = [TokenLogprob(ids[0], None)]
        softcap = self.network.config.logit_softcap
        for begin in range(0, len(ids) - 1, _HEAD_POSITIONS):  # all (T, V) logits at once could exhaust the memory
            targets = torch.tensor(ids[begin + 1 : begin + 1 + _HEAD_POSITIONS], device=hidden.device)
            logits = F.linear(hidden[0, begin : begin + len(targets)], weight, bias).float()
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            logprobs = logits.log_softmax(dim=-1)
            chosen = logprobs.gather(1, targets[:, None])[:, 0].tolist()
            values, tokens = (part.tolist() for part in logprobs.topk(num_top, dim=-1))
            for token, logprob, top, value in zip(targets.tolist(), chosen, tokens, values, strict=True):
                results.append(TokenLogprob(token, logprob, tuple(zip(top, value, strict=True))))
        return results

    def _hidden_states(self, ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the (1, T, C) hidden states after the final norm, with weight and bias of the head."""
        device = next(self.network.parameters()).device
        result: tuple[Tensor, Tensor, Tensor | None] = self.network(
            torch.tensor([list(ids)], device=device), head_fn=lambda hidden, weight, bias: (hidden, weight, bias)
        )
        return result


class TokenText:
    """Bytes and displayed text of each token id, which may be a part of a character.

    Args:
        tokenizer: Tokenizer of the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._alphabet = byte_alphabet()
        self._lengths = tokenizer.byte_lengths

    def bytes(self, index: int) -> bytes:
        """Return the bytes of a token: for a special token those of its name, for an unknown id none."""
        token = self._tokenizer.backend.id_to_token(index)
        if token is None:
            return b""
        length = int(self._lengths[index])
        # In a byte-level vocabulary each character of a token represents one byte, so their numbers agree.
        if length == len(token) and all(character in self._alphabet for character in token):
            return bytes(self._alphabet[character] for character in token)
        found = _BYTE_TOKEN.fullmatch(token)
        if found and length == 1:
            return bytes([int(found[1], 16)])
        return str(token).replace("▁", " ").encode() if length else str(token).encode()

    def text(self, index: int) -> str:
        """Return the bytes as text; a partial character is shown as U+FFFD."""
        return self.bytes(index).decode("utf-8", "replace")


def load_served(
    model: str,
    adapter: str | None = None,
    name: str | None = None,
    chat_template: str | None = None,
    device: str = "auto",
    dtype: str = "keep",
    weights: str = "plain",
    max_batch_size: int = 16,
    cache_tokens: int | None = None,
    max_length: int | None = None,
    prefill_chunk: int = 512,
    compile: bool = False,
    draft_model: str | None = None,
    draft_tokens: int | None = None,
) -> ServedModel:
    """Load a model, verified by its manifest, and start its engine.

    Args:
        model: A run's folder, a checkpoint, a bundle, a Hugging Face folder, a GGUF file, or a hub name.
        adapter: Folder of an adapter to apply to the model.
        name: Model name in requests; None: its folder's name.
        chat_template: Preset name or file that replaces the tokenizer's own template.
        device: Device of the model; auto takes the accelerator if there is one.
        dtype: Dtype of the weights; keep: as stored.
        weights: Form of the weights on a CPU (`lit_gpt.models.packed`).
        max_batch_size: Maximum number of sequences that run at once.
        cache_tokens: Capacity of the KV cache in tokens; None: as `Engine` chooses.
        max_length: Maximum number of tokens of prompt and answer together; None: as `Engine` chooses.
        prefill_chunk: Prompt tokens processed in one forward pass.
        compile: Whether to decode through torch.compile with fixed shapes.
        draft_model: A smaller model with the same tokenizer that proposes tokens for this one to verify.
        draft_tokens: Number of tokens to propose at a time (`lit_gpt.generation.loading.load_speculation`).

    Raises:
        UserError: If there is no such model, it is damaged, has no tokenizer, or a setting does not fit it.
    """
    form = "plain" if compile and weights == "auto" else weights
    source = resolve_for_generation(model, device, adapter)
    network, tokenizer = load_for_generation(source, device, weights=form, tokens=max_batch_size, dtype=dtype)
    renderer = make_renderer(tokenizer, chat_template)
    speculation = load_speculation(network, tokenizer, source, draft_model, draft_tokens, device, compile=compile)
    engine = Engine(
        network,
        tokenizer,
        max_batch_size,
        cache_tokens,
        prefill_chunk,
        max_length,
        compile=compile,
        speculation=speculation,
    )
    return ServedModel.of(name or short_name(model), network, tokenizer, engine, renderer)


def _num_characters(value: Any) -> int:
    """Return the number of characters of all texts in a JSON value, whose nesting the parser has limited."""
    if isinstance(value, str):
        return len(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_num_characters, parts))
