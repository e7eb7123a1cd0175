"""Encode prompts for generation: rows become tokens up to the start of the answer, stored together with the row.

A prompt may have any format of `lit_gpt.data.instructions` without its answer: `prompt` or `messages` that end with the
user, `question`, or `instruction` with `input`; `system` and `tools` are optional. All fields of the row are kept for
the reward functions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from lit_gpt.data.chat import ChatRenderer, Message, check_messages
from lit_gpt.data.instructions.encoder import prompt_key
from lit_gpt.data.instructions.forms import RowFields, chat_of, question_of, tools_of, with_system
from lit_gpt.data.instructions.stdlib import StdlibInstructions, described_functions
from lit_gpt.data.records import Record
from lit_gpt.data.rows.store import EncodedRow, EncodedSequence
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json

LongPrompts = Literal["drop", "error"]
DROPPED = "left out as longer than max_prompt_tokens"


def prompt_of(
    row: Mapping[str, object],
    columns: Mapping[str, str] | None = None,
    system_prompt: str | None = None,
    ignore_fields: Sequence[str] = (),
) -> list[Message]:
    """Return the messages of a row; an answer at the end of `messages` is removed.

    Raises:
        UserError: if the row has no prompt, or its roles are out of order.
    """
    return _read(RowFields(row, columns, ignore_fields), system_prompt)


def _read(fields: RowFields, system_prompt: str | None) -> list[Message]:
    messages = chat_of(fields)
    if messages is None:
        messages = question_of(fields)
    elif messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if messages is None:
        raise UserError(
            f"its fields are {', '.join(map(repr, fields.values)) or 'none'}; a prompt is in prompt, question, "
            "messages or instruction (set columns for other names)"
        )
    fields.refuse_media()
    messages = with_system(messages, fields, system_prompt)
    check_messages(messages)
    if messages[-1]["role"] not in ("user", "tool"):
        raise UserError(f"the prompt ends with {messages[-1]['role']!r}; there is nothing to answer")
    return messages


class PromptEncoder:
    """Renders a prompt up to the start of the assistant's answer.

    Args:
        renderer: Chat template on a tokenizer.
        max_prompt_tokens: Maximum prompt length in tokens; prompts are never truncated.
        long_rows: What to do with longer prompts: `drop` or `error`.
        columns: Mapping from the expected field name to the name in the data.
        system_prompt: System prompt for rows that have none.
        ignore_fields: Fields of rows and turns to ignore; all others are passed to the reward functions.

    Raises:
        UserError: if `long_rows` has another value.
    """

    def __init__(
        self,
        renderer: ChatRenderer,
        max_prompt_tokens: int,
        long_rows: LongPrompts = "drop",
        columns: Mapping[str, str] | None = None,
        system_prompt: str | None = None,
        ignore_fields: Sequence[str] = (),
    ) -> None:
        if long_rows not in ("drop", "error"):
            raise UserError(f"long_rows is {long_rows!r}; prompts are never truncated, so it can be drop or error")
        self.renderer = renderer
        self.max_prompt_tokens = max_prompt_tokens
        self.long_rows = long_rows
        self.columns = dict(columns or {})
        self.system_prompt = system_prompt
        self.ignore_fields = list(ignore_fields)
        self.vocab_size = renderer.tokenizer.vocab_size

    def fingerprint(self) -> str:
        """Return a hash of everything that the tokens depend on."""
        return sha256_json([
            type(self).__name__, self.renderer.tokenizer.fingerprint, self.renderer.template.source,
            self.max_prompt_tokens, self.long_rows, self.columns, self.system_prompt, self.ignore_fields,
        ])  # fmt: skip

    def __call__(self, row: Record) -> EncodedRow | str:
        """Encode a row.

        Raises:
            UserError: if the row has no prompt, a prompt that is too long (with `error`), or fields that cannot be
                stored as JSON.
        """
        fields = RowFields(row.values, self.columns, self.ignore_fields)
        messages = _read(fields, self.system_prompt)
        ids = self.renderer(messages, add_generation_prompt=True, tools=tools_of(fields)).ids
        if len(ids) > self.max_prompt_tokens:
            if self.long_rows == "drop":
                return DROPPED
            raise UserError(
                f"its prompt has {len(ids)} tokens, more than max_prompt_tokens {self.max_prompt_tokens}; raise it, or "
                "set long_rows to drop"
            )
        try:
            # Values such as dates and decimals in Parquet files are stored as text; few rewards use them.
            attached = json.dumps({"messages": messages, "row": fields.values}, ensure_ascii=False, default=str)
            attached.encode("utf-8")
        except (TypeError, ValueError) as error:
            raise UserError(f"a field cannot be stored for the rewards: {error}") from error
        return EncodedRow(
            (EncodedSequence(ids, [False] * len(ids)),),
            prompt_key(messages),
            attached=attached,
            left_out=tuple(fields.left_out),
        )


class StdlibPrompts(StdlibInstructions):
    """Rows with `prompt`, `signature` and `completion`: the tasks of `StdlibInstructions`, for sampling answers.

    The split is the same: functions of files that pretraining held out are held out here, too.
    """

    name = "functions to write, of the Python standard library"
    version = 1

    def generate(self) -> Iterator[Record]:
        """Yield the functions, file by file; only the first one of those with the same prompt."""
        seen: set[str] = set()
        for name, path in self.files:
            text = path.read_text(encoding="utf-8")
            for function in described_functions(text):
                if function.completion.count("\n") < self.max_lines and function.prompt not in seen:
                    seen.add(function.prompt)
                    values = {"prompt": function.prompt, "signature": function.signature}
                    yield Record({**values, "completion": function.completion}, name, function.line, split_key=text)
