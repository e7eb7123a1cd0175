r"""Convert rows with a better and a worse answer to pairs of conversations.

| form | fields |
|---|---|
| prompt and two answers | `prompt` or `question`, `chosen`, `rejected`: texts or lists of messages |
| two conversations | `chosen`, `rejected`: lists of messages with a common beginning (UltraFeedback, binarized) |
| HH-RLHF | `chosen`, `rejected`: texts of turns after "\n\nHuman:" and "\n\nAssistant:"; or in `prompt` |
| Alpaca with preferences | `instruction`, `input`, `history`, `chosen`, `rejected` |
| ShareGPT with preferences | `conversations` that end with the user, `chosen`, `rejected`: turns of from, value |

A row of any format may also have `system` and `tools`. Only the last answer is compared; earlier answers, which both
sides share, are part of the prompt.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lit_gpt.data.chat.messages import Message, Tool, check_messages, normalise_messages
from lit_gpt.data.instructions.encoder import InstructionEncoder, as_context, prompt_key
from lit_gpt.data.instructions.forms import RowFields, chat_of, question_of, tools_of, with_system
from lit_gpt.data.records import Record
from lit_gpt.data.rows.store import EncodedRow
from lit_gpt.errors import UserError

_TURN = re.compile(r"\n\n(Human|Assistant):")


class Preference(NamedTuple):
    """A shared prompt, and the messages that follow it on either side."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    tools: Sequence[Tool] = ()
    left_out: tuple[str, ...] = ()
    """Fields of the row."""


def preference_of(
    row: Mapping[str, Any],
    columns: Mapping[str, str] | None = None,
    system_prompt: str | None = None,
    ignore_fields: Sequence[str] = (),
) -> Preference:
    """Convert a row to a preference pair.

    Args:
        row: Fields of the row.
        columns: Mapping from the expected field name to the name in the row.
        system_prompt: System prompt for rows that have none.
        ignore_fields: Fields to ignore (see `RowFields`).

    Raises:
        UserError: if a field is missing, empty or unknown, the sides are equal or answer different prompts, or roles
            are out of order.
    """
    fields = RowFields(row, columns, ignore_fields)
    missing = [name for name in ("chosen", "rejected") if fields.values.get(name) is None]
    if missing:
        raise UserError(
            f"no field {missing[0]!r}; its fields are {', '.join(map(repr, fields.values)) or 'none'} (a "
            "preference has chosen and rejected; set columns for other names)"
        )
    sides = [with_system(_side(fields, name), fields, system_prompt) for name in ("chosen", "rejected")]
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        try:
            check_messages(side, for_training=True)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    chosen, rejected = sides
    if chosen == rejected:
        raise UserError("chosen and rejected are equal, so there is nothing to prefer")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0 or chosen[shared - 1]["role"] == "system":
        raise UserError("chosen and rejected answer different prompts")
    if shared == min(len(chosen), len(rejected)) or chosen[shared]["role"] != "assistant":
        raise UserError("chosen and rejected first differ at a message that is not an answer")
    tools = tools_of(fields)
    return Preference(
        chosen[:shared], chosen[shared:], rejected[shared:], tools, fields.finish([*chosen, *rejected[shared:]])
    )


def _side(fields: RowFields, name: str) -> list[Message]:
    value = fields.get(name)
    if isinstance(value, str) and _TURN.match(value):
        return _from_hh(value, name)
    answer = fields.turns(value, "assistant", name)
    if not answer or answer[0]["role"] != "assistant":
        return answer  # a whole conversation
    prompt = fields.values.get("prompt")
    if isinstance(prompt, str) and _TURN.match(prompt):  # HH-RLHF turns with the answers split off
        *turns, last = _from_hh(fields.get("prompt"), "prompt")
        return [*turns, *answer] if last == Message(role="assistant", content="") else [*turns, last, *answer]
    given = question_of(fields)
    if given is None:
        given = chat_of(fields)
    if given is None:
        raise UserError(f"the field {name!r} is an answer, but there is no prompt or instruction")
    return [*given, *answer]


def _from_hh(text: str, name: str) -> list[Message]:
    """Parse Anthropic's format, and join consecutive turns of one speaker."""
    messages: list[dict[str, str]] = []
    parts = _TURN.split(text)
    for speaker, content in zip(parts[1::2], parts[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + content.strip()
        else:
            messages.append({"role": role, "content": content.strip()})
    try:
        return normalise_messages(messages)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


class PreferenceEncoder(InstructionEncoder):
    """Encodes pairs (sequence 0: chosen, 1: rejected), of which the tokens after the shared prompt are compared."""

    def __call__(self, row: Record) -> EncodedRow | str:
        """Encode a row.

        Raises:
            UserError: if the row is not a pair, or the shared prompt alone fills the context.
        """
        preference = preference_of(row.values, self.columns, self.system_prompt, self.ignore_fields)
        prompt = as_context(preference.prompt)
        sequences = []
        notes: set[str] = set()
        for answer in (preference.chosen, preference.rejected):
            encoded = self.sequence([*prompt, *answer], list(preference.tools))
            if isinstance(encoded, str):
                return encoded
            sequences.append(encoded[0])
            notes.update(encoded[1])
        if sequences[0] == sequences[1]:
            raise UserError("within the context, chosen and rejected are equal; raise block_size, or remove the row")
        return EncodedRow(
            tuple(sequences), prompt_key(preference.prompt), notes=tuple(sorted(notes)), left_out=preference.left_out
        )
