r"""Rows with a better and a worse answer → pairs of conversations.

| form | fields |
|---|---|
| prompt and two answers | `prompt`, `chosen`, `rejected`: texts or lists of messages |
| two conversations | `chosen`, `rejected`: lists of messages that begin alike (UltraFeedback, binarized) |
| HH-RLHF | `chosen`, `rejected`: texts of turns after "\n\nHuman:" and "\n\nAssistant:"; or the same in `prompt` |
| Alpaca with preferences | `instruction`, `input`, `chosen`, `rejected` |
| ShareGPT with preferences | `conversations` that end with the user, `chosen`, `rejected`: turns of from, value |

A row of any form may also have `system` and `tools`. Only the last answer is compared: earlier ones, which both sides
share, are part of the prompt.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lit_gpt.data.chat.messages import Message, check_messages, normalise_messages
from lit_gpt.data.instructions.encoder import CUT, InstructionEncoder, prompt_key
from lit_gpt.data.instructions.forms import instruction_text, parsed, renamed, tools_of, turns_of, with_system
from lit_gpt.data.records import Record
from lit_gpt.data.rows.store import EncodedRow
from lit_gpt.errors import UserError

_TURN = re.compile(r"\n\n(Human|Assistant):")


class Preference(NamedTuple):
    """A shared prompt, and what follows it on either side."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def preference_of(
    row: Mapping[str, Any], columns: Mapping[str, str] | None = None, system_prompt: str | None = None
) -> Preference:
    """Read a row.

    Args:
        row: Its fields.
        columns: Our name of a field → the name that the row has for it.
        system_prompt: Given to rows that have none.

    Raises:
        UserError: if a field is missing or empty, the sides are equal or answer different prompts, or roles are out
            of order.
    """
    row = renamed(row, columns)
    missing = [name for name in ("chosen", "rejected") if row.get(name) is None]
    if missing:
        raise UserError(
            f"no field {missing[0]!r}; its fields are {', '.join(map(repr, row)) or 'none'} (a preference has chosen "
            "and rejected; set columns for other names)"
        )
    sides = [with_system(_side(row, name), row, system_prompt) for name in ("chosen", "rejected")]
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
        raise UserError("chosen and rejected part at a message that is no answer")
    return Preference(chosen[:shared], chosen[shared:], rejected[shared:])


def _side(row: Mapping[str, Any], name: str) -> list[Message]:
    value = row[name]
    if isinstance(value, str) and _TURN.match(value):
        return _from_hh(value, name)
    answer = turns_of(value, "assistant", name)
    if not answer or answer[0]["role"] != "assistant":
        return answer  # a whole conversation
    if isinstance(row.get("prompt"), str) and _TURN.match(row["prompt"]):  # HH-RLHF with the answers cut off
        *turns, last = _from_hh(row["prompt"], "prompt")
        return [*turns, *answer] if last == Message(role="assistant", content="") else [*turns, last, *answer]
    if row.get("prompt") is not None:
        return [*turns_of(row["prompt"], "user", "prompt"), *answer]
    if row.get("instruction") is not None:
        return [*turns_of(instruction_text(row), "user", "instruction"), *answer]
    for field in ("conversations", "messages"):
        if row.get(field) is not None:
            return [*turns_of(parsed(row[field], field), "user", field), *answer]
    raise UserError(f"the field {name!r} holds an answer, but there is no prompt (or instruction) to it")


def _from_hh(text: str, name: str) -> list[Message]:
    """Read Anthropic's form, in which turns of one speaker may follow each other: they are joined."""
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


def _context(message: Message) -> Message:
    """An earlier answer, as part of the prompt: it is not compared."""
    return Message(**{**message, "weight": 0}) if message["role"] == "assistant" else message


class PreferenceEncoder(InstructionEncoder):
    """Pairs: sequence 0 is the chosen side, 1 the rejected; the tokens after the shared prompt are compared."""

    def __call__(self, row: Record) -> EncodedRow | str:
        """Encode a row.

        Raises:
            UserError: if it is no pair, or the shared prompt alone fills the context.
        """
        preference = preference_of(row.values, self.columns, self.system_prompt)
        tools = tools_of(renamed(row.values, self.columns))
        prompt = [_context(message) for message in preference.prompt]
        sequences = []
        notes: tuple[str, ...] = ()
        for answer in (preference.chosen, preference.rejected):
            encoded = self.sequence([*prompt, *answer], tools)
            if isinstance(encoded, str):
                return encoded
            sequence, was_cut = encoded
            notes = (CUT,) if was_cut else notes
            sequences.append(sequence)
        if sequences[0] == sequences[1]:
            raise UserError("within the context, chosen and rejected are equal; raise block_size, or leave the row out")
        return EncodedRow(tuple(sequences), prompt_key(preference.prompt), notes=notes)
