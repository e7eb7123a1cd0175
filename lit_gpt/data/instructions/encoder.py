"""Instruction rows → tokens, and which tokenizer they need."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lit_gpt.data.chat import ChatRenderer, Tool, load_chat_template, template_of, with_chat_template
from lit_gpt.data.chat.messages import Message
from lit_gpt.data.instructions.forms import conversation_of
from lit_gpt.data.records import Record
from lit_gpt.data.rows.store import EncodedRow, EncodedSequence
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json

LongRows = Literal["cut", "drop", "error"]
"""What happens to a conversation longer than the context: its end is cut off; it is left out; or it is an error.
The first two are counted."""

CUT = "cut off at the context's end"
DROPPED = "left out as longer than the context"
NO_REASONING = "without their reasoning_content, for which the chat template has no place"


class InstructionEncoder:
    """Renders a conversation with the chat template and learns the assistant's tokens alone.

    Args:
        renderer: Chat template on a tokenizer.
        block_size: T: a conversation of more than T + 1 tokens is too long.
        long_rows: What happens then.
        columns: Our name of a field → the data's.
        system_prompt: Given to rows that have none.
    """

    def __init__(
        self,
        renderer: ChatRenderer,
        block_size: int,
        long_rows: LongRows = "cut",
        columns: Mapping[str, str] | None = None,
        system_prompt: str | None = None,
    ) -> None:
        if long_rows not in ("cut", "drop", "error"):
            raise UserError(f"long_rows is {long_rows!r}; it can be cut, drop or error")
        self.renderer = renderer
        self.block_size = block_size
        self.long_rows = long_rows
        self.columns = dict(columns or {})
        self.system_prompt = system_prompt
        self.vocab_size = renderer.tokenizer.vocab_size
        self._renders_reasoning = "reasoning_content" in renderer.template.source

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the tokens."""
        return sha256_json([
            type(self).__name__, self.renderer.tokenizer.fingerprint, self.renderer.template.source, self.block_size,
            self.long_rows, self.columns, self.system_prompt,
        ])  # fmt: skip

    def __call__(self, row: Record) -> EncodedRow | str:
        """Encode a row.

        Raises:
            UserError: if it has no usable form, or its prompt alone fills the context.
        """
        conversation = conversation_of(row.values, self.columns, self.system_prompt)
        encoded = self.sequence(conversation.messages, conversation.tools)
        if isinstance(encoded, str):
            return encoded
        sequence, was_cut = encoded
        notes = (CUT,) if was_cut else ()
        if not self._renders_reasoning and any("reasoning_content" in turn for turn in conversation.messages):
            notes = (*notes, NO_REASONING)
        return EncodedRow((sequence,), prompt_key(conversation.prompt), notes=notes)

    def sequence(self, messages: list[Message], tools: list[Tool]) -> tuple[EncodedSequence, bool] | str:
        """Return tokens and mask of checked messages and whether their end was cut off, or the rule they fell to.

        Raises:
            UserError: if no token of an answer is within the context, or `long_rows` is `error`.
        """
        ids, mask, _ = self.renderer(messages, tools=tools)
        if not any(mask):
            raise UserError("it has no token to learn: every answer is empty or has weight 0")
        end = max(place for place, mine in enumerate(mask) if mine) + 1  # nothing is learned from what follows
        ids, mask = ids[:end], mask[:end]
        limit = self.block_size + 1
        if end <= limit:
            return EncodedSequence(ids, mask), False
        if self.long_rows == "drop":
            return DROPPED
        first = mask.index(True)
        if first >= limit:
            raise UserError(
                f"its prompt has {first} tokens, more than block_size {self.block_size}, so nothing of the answer is "
                "within the context"
            )
        if self.long_rows == "error":
            raise UserError(f"it has {end} tokens, more than block_size {self.block_size} + 1 (long_rows: error)")
        return EncodedSequence(ids[:limit], mask[:limit]), True


def prompt_key(prompt: list[Message]) -> str:
    """Return the text whose hash decides a row's split: rows with one prompt are never on both sides."""
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False, default=str)


def chat_tokenizer(
    path: str | Path, chat_template: str | None = None, chat_tokens: tuple[str, ...] = ()
) -> tuple[Tokenizer, list[str]]:
    """Load the tokenizer of a model, with the chat template and its special tokens in it.

    Args:
        path: A tokenizer's folder or hub name, or a run, checkpoint or bundle, whose tokenizer is meant.
        chat_template: Preset or file; None takes the tokenizer's own.
        chat_tokens: Further special tokens to add.

    Returns:
        The tokenizer, and the tokens that are new in it.

    Raises:
        UserError: if there is no tokenizer or no template, or the template cannot be learned from.
    """
    plain = load_tokenizer(tokenizer_folder(path))
    template = template_of(plain) if chat_template is None else load_chat_template(chat_template)
    tokenizer = with_chat_template(plain, template, chat_tokens)
    ChatRenderer(tokenizer).check()
    old = plain.backend.get_vocab(with_added_tokens=True)
    new = [token for token in (*template.tokens, *chat_tokens) if token not in old]
    return tokenizer, list(dict.fromkeys(new))


def tokenizer_folder(path: str | Path) -> str | Path:
    """Return the tokenizer's folder of a run or checkpoint, anything else as it is."""
    folder = Path(path).expanduser()
    for candidate in (folder / "tokenizer", folder.parent.parent / "tokenizer"):
        if folder.is_dir() and not (folder / "tokenizer.json").exists() and candidate.is_dir():
            return candidate
    return path
