"""Encode instruction rows as tokens, and load the tokenizer that they need."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
"""Handling of conversations longer than the context: truncate them (`cut`), leave them out (`drop`), or raise
(`error`). The first two are counted."""

CUT = "cut off at the context's end"
DROPPED = "left out as longer than the context"
UNLEARNED_END = "without the turns after the last trained answer"
SPLIT = "with one sequence per answer, because the chat template changes earlier answers once turns follow"


class InstructionEncoder:
    """Renders conversations with a chat template and masks everything but the assistant's tokens out of the loss.

    Args:
        renderer: Chat template on a tokenizer.
        block_size: T: a conversation of more than T + 1 tokens is too long.
        long_rows: What to do with a conversation that is too long: `cut`, `drop` or `error`.
        columns: Mapping from the expected field name to the name in the data.
        system_prompt: System prompt for rows that have none.
        ignore_fields: Fields of rows and turns to ignore.

    Raises:
        UserError: if `long_rows` has another value.
    """

    def __init__(
        self,
        renderer: ChatRenderer,
        block_size: int,
        long_rows: LongRows = "cut",
        columns: Mapping[str, str] | None = None,
        system_prompt: str | None = None,
        ignore_fields: Sequence[str] = (),
    ) -> None:
        if long_rows not in ("cut", "drop", "error"):
            raise UserError(f"long_rows is {long_rows!r}; it can be cut, drop or error")
        self.renderer = renderer
        self.block_size = block_size
        self.long_rows = long_rows
        self.columns = dict(columns or {})
        self.system_prompt = system_prompt
        self.ignore_fields = tuple(ignore_fields)
        self.vocab_size = renderer.tokenizer.vocab_size

    def fingerprint(self) -> str:
        """Return a hash of everything that the tokens depend on."""
        return sha256_json([
            type(self).__name__, self.renderer.tokenizer.fingerprint, self.renderer.template.source, self.block_size,
            self.long_rows, self.columns, self.system_prompt, self.ignore_fields,
        ])  # fmt: skip

    def __call__(self, row: Record) -> EncodedRow | list[EncodedRow] | str:
        """Encode a row, as several if the template renders answers differently once turns follow.

        Raises:
            UserError: if the row has no supported format, or its prompt alone fills the context.
        """
        conversation = conversation_of(row.values, self.columns, self.system_prompt, self.ignore_fields)
        encoded = self.sequences(conversation.messages, conversation.tools)
        if isinstance(encoded, str):
            return encoded
        key = prompt_key(conversation.prompt)
        rows = [EncodedRow((sequence,), key, notes=notes) for sequence, notes in encoded]
        # Notes on the row as a whole are counted once.
        notes = tuple(dict.fromkeys(note for row in rows for note in row.notes)) + ((SPLIT,) if len(rows) > 1 else ())
        if not conversation.messages[-1].get("weight", 1):
            notes = (*notes, UNLEARNED_END)
        rows[0] = replace(rows[0], notes=notes, left_out=conversation.left_out)
        return [rows[0], *(replace(row, notes=()) for row in rows[1:])]

    def sequence(self, messages: list[Message], tools: list[Tool]) -> tuple[EncodedSequence, tuple[str, ...]] | str:
        """Return the sequence of validated messages that must give a single one; see `sequences`.

        Raises:
            UserError: if their answers do not fit into one rendering.
        """
        encoded = self.sequences(messages, tools)
        if isinstance(encoded, str):
            return encoded
        if len(encoded) > 1:
            raise UserError(
                f"the chat template ({self.renderer.template.name}) renders answers differently once turns follow, so "
                "several answers of this row cannot be judged together; give all but the last weight: 0"
            )
        return encoded[0]

    def sequences(
        self, messages: list[Message], tools: list[Tool]
    ) -> list[tuple[EncodedSequence, tuple[str, ...]]] | str:
        """Return tokens, mask and notes of validated messages, or the reason to drop them.

        Raises:
            UserError: if no token of an answer is within the context, or `long_rows` is `error`.
        """
        found = self.renderer.learned(messages, tools)
        if not found:
            raise UserError("it has no target token: every answer has weight 0")
        limit = self.block_size + 1
        longest = max(len(one.ids) for one in found)
        if longest > limit and self.long_rows == "drop":
            return DROPPED
        if longest > limit and self.long_rows == "error":
            raise UserError(
                f"it has {longest} tokens, more than block_size {self.block_size} + 1; raise it, or set "
                "long_rows to cut or drop"
            )
        kept = []
        for one in found:
            notes = (*one.notes, CUT) if len(one.ids) > limit else one.notes
            if any(one.mask[:limit]):
                kept.append((EncodedSequence(one.ids[:limit], one.mask[:limit]), notes))
            elif kept:  # an answer beyond the context, like those at the end of a single long sequence
                kept[-1] = (kept[-1][0], tuple(dict.fromkeys((*kept[-1][1], CUT))))
        if not kept:
            raise UserError(
                f"its prompt has {found[0].mask.index(True)} tokens, more than block_size {self.block_size}, so "
                "nothing of the answer is within the context; raise it, or shorten the prompt"
            )
        return kept


def as_context(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with all answers marked as context."""
    return [Message(**{**turn, "weight": 0}) if turn["role"] == "assistant" else turn for turn in messages]


def prompt_key(prompt: list[Message]) -> str:
    """Return the text whose hash determines a row's split, so that rows with the same prompt are in the same split."""
    plain = [{name: value for name, value in turn.items() if name != "weight"} for turn in prompt]
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, default=str)


def chat_tokenizer(
    path: str | Path, chat_template: str | None = None, chat_tokens: tuple[str, ...] = ()
) -> tuple[Tokenizer, list[str]]:
    """Load a model's tokenizer, with the chat template and its special tokens added.

    Args:
        path: Tokenizer folder or hub name, or a run, checkpoint or bundle whose tokenizer is loaded.
        chat_template: Preset name or file; None takes the tokenizer's own template.
        chat_tokens: Additional special tokens to add.

    Returns:
        The tokenizer, and the tokens that were added to it.

    Raises:
        UserError: if there is no tokenizer or no template, or the template does not mark the assistant's tokens.
    """
    plain = load_tokenizer(tokenizer_folder(path))
    template = template_of(plain) if chat_template is None else load_chat_template(chat_template)
    tokenizer = with_chat_template(plain, template, chat_tokens)
    ChatRenderer(tokenizer).check()
    old = plain.backend.get_vocab(with_added_tokens=True)
    new = [token for token in (*template.tokens, *chat_tokens) if token not in old]
    return tokenizer, list(dict.fromkeys(new))


def tokenizer_folder(path: str | Path) -> str | Path:
    """Return the tokenizer folder of a run or checkpoint; other arguments are returned unchanged."""
    folder = Path(path).expanduser()
    for candidate in (folder / "tokenizer", folder.parent.parent / "tokenizer"):
        if folder.is_dir() and not (folder / "tokenizer.json").exists() and candidate.is_dir():
            return candidate
    return path
