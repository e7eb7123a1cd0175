"""Random rows in all forms: every word of a row is in its tokens, reported as left out, or refused with the row."""

import json
import random
import re
from collections import Counter

import pytest

from lit_gpt.data.chat import ChatRenderer, load_chat_template, with_chat_template
from lit_gpt.data.chat.answers import NO_NAME, NO_REASONING
from lit_gpt.data.classification import ClassificationEncoder
from lit_gpt.data.instructions import InstructionEncoder, PreferenceEncoder
from lit_gpt.data.instructions.encoder import UNLEARNED_END
from lit_gpt.data.prompts import PromptEncoder
from lit_gpt.data.records import Record
from lit_gpt.datamodules.preference import FeedbackEncoder
from lit_gpt.errors import UserError

BLOCK = 4000
IGNORED = ["skip_*"]
EXTRA = ("id", "source", "score", "skip_a", "skip_b", "note", "margin", "images", "prompt", "response", "history")
TURN_EXTRA = ("reasoning_content", "thinking", "name", "skip_a", "timestamp", "refusal")
MARKS = ({"weight": 0}, {"train": True}, {"loss": False}, {"loss_weight": 1}, {"masked": True}, {"weight": 0.3})


class RowMaker:
    """Makes rows whose every text holds a word of its own.

    Args:
        seed: Of the random choices.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.number = 0

    def word(self):
        self.number += 1
        return f"w{self.number}w"

    def often(self, share):
        return self.random.random() < share

    def row(self):
        """Return (form, row)."""
        self.number = 0
        form = self.random.choice(("messages", "conversations", "prompt", "question", "instruction", "pair", "text"))
        row = getattr(self, f"_{form}")()
        for name in self.random.sample(EXTRA, self.random.choice((0, 0, 0, 1, 1, 2))):
            row.setdefault(name, self.random.choice((self.word(), None, "", [])))
        if self.often(0.1):
            row["tools"] = [{"name": self.word(), "description": self.word(), "parameters": {}}]
        items = list(row.items())
        self.random.shuffle(items)
        return form, dict(items)

    def _turn(self, role, names=("role", "content")):
        content = self.word() if self.often(0.97) else ""
        turn = {names[0]: role, names[1]: content}
        if names[1] == "content" and self.often(0.1):
            turn["content"] = [{"type": "text", "text": content}]
        if self.often(0.1):
            turn[self.random.choice(TURN_EXTRA)] = self.random.choice((self.word(), None))
        if self.often(0.1):
            turn |= self.random.choice(MARKS)
        if role == "assistant" and self.often(0.05):
            turn["tool_calls"] = [{"name": self.word(), "arguments": {self.word(): self.word()}}]
        return turn

    def _chat(self, user, assistant, names):
        turns = [self._turn("system", names)] if self.often(0.2) else []
        for _ in range(self.random.randint(1, 3)):
            turns += [self._turn(user, names), self._turn(assistant, names)]
        if self.often(0.03):
            self.random.shuffle(turns)
        return turns

    def _messages(self):
        turns = self._chat("user", "assistant", ("role", "content"))
        return {"messages": json.dumps(turns) if self.often(0.1) else turns}

    def _conversations(self):
        row = {"conversations": self._chat("human", "gpt", ("from", "value"))}
        return row | ({"system": self.word()} if self.often(0.2) else {})

    def _prompt(self):
        earlier = [self._turn("user"), self._turn("assistant"), self._turn("user")]
        return {"prompt": earlier if self.often(0.3) else self.word(), "completion": self.word()}

    def _question(self):
        return {"question": self.word(), "answer": self.word(), "system_prompt": self.word()}

    def _instruction(self):
        row = {"instruction": self.word(), "input": self.random.choice((self.word(), "")), "output": self.word()}
        return row | ({"history": [[self.word(), self.word()]]} if self.often(0.2) else {})

    def _pair(self):
        sides = {name: self.word() for name in ("chosen", "rejected")}
        return {**self.random.choice((self._prompt(), self._question(), self._instruction())), **sides}

    def _text(self):
        return {"text": self.word(), "label": self.random.choice((0, "1"))}


def check(num_rows, seed, renderer):
    """Check rows; returns how many of their words were used, left out and refused."""
    options = {"ignore_fields": IGNORED}
    instructions = InstructionEncoder(renderer, BLOCK, **options)
    prompts = PromptEncoder(renderer, BLOCK, **options)
    encoders = {
        "pair": [PreferenceEncoder(renderer, BLOCK, **options)],
        "text": [ClassificationEncoder(renderer.tokenizer, ["0", "1"], BLOCK, **options)],
    }
    feedback = FeedbackEncoder(renderer, BLOCK, **options)
    make = RowMaker(seed)
    counts = Counter()
    for number in range(num_rows):
        form, row = make.row()
        for encoder in encoders.get(form, (instructions, prompts, feedback)):
            given = row | {"label": True} if encoder is feedback else row
            words = set(re.findall(r"w\d+w", json.dumps(given)))
            counts["all"] += len(words)
            try:
                encoded = encoder(Record(given, "rows", number))
            except UserError:
                counts["refused"] += len(words)
                continue
            parts = encoded if isinstance(encoded, list) else [encoded]
            text = "".join(renderer.tokenizer.decode(ids) for part in parts for ids, _ in part.sequences)
            text += "".join(part.attached for part in parts)
            left_out = {name: given.get(name) for part in parts for name in part.left_out}
            reported = json.dumps([left_out, *(_ignored(given, left_out))])
            if any(NO_REASONING in part.notes for part in parts):
                reported += json.dumps([_named(given, ("reasoning_content", "thinking"))])
            if any(NO_NAME in part.notes for part in parts):
                reported += json.dumps(_named(given, ("name",)))
            if any(UNLEARNED_END in part.notes for part in parts):
                reported += json.dumps(_unlearned_end(given, text))
            if encoder is prompts:
                reported = json.dumps(_named(given, left_out))
            for word in words:
                assert word in text or word in reported, f"{word} of {given} is lost"
                counts["used" if word in text else "left out"] += 1
    return counts


def _unlearned_end(row, text):
    """The turns after the last one that is in the tokens."""
    turns = row.get("messages") or row.get("conversations")
    turns = json.loads(turns) if isinstance(turns, str) else turns
    places = [i for i, turn in enumerate(turns) if any(w in text for w in re.findall(r"w\d+w", json.dumps(turn)))]
    return turns[places[-1] + 1 :]


def _ignored(row, left_out):
    return [value for name in left_out for value in _named(row, (name,))]


def _named(value, names):
    """The values of all fields of these names, also within turns."""
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    if isinstance(value, dict):
        found = [part for name, part in value.items() if name in names]
        return found + [one for part in value.values() for one in _named(part, names)]
    return [one for part in value for one in _named(part, names)] if isinstance(value, list) else []


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return ChatRenderer(with_chat_template(tokenizer, load_chat_template("qwen")))


def test_nothing_is_lost(renderer):
    counts = check(600, 0, renderer)
    assert counts["all"] == counts["used"] + counts["left out"] + counts["refused"]
    assert min(counts["used"], counts["left out"], counts["refused"]) > 50


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_nothing_of_many_rows_is_lost(renderer, seed):
    counts = check(10_000, seed, renderer)
    print(seed, dict(counts))
    assert counts["all"] == counts["used"] + counts["left out"] + counts["refused"]
