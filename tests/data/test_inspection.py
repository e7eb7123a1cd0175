"""What is shown is what is in the batch, for batches of every form."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from small_texts import make_texts

from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.data.batches import BatchBuilder
from lit_gpt.data.inspection import page, terminal
from lit_gpt.data.inspection.view import Report, TokenTexts, windows_of
from lit_gpt.data.provenance import Piece
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.pages.text import visible

HOSTILE = "<script>alert('漢🙂')</script> \x1b[31m & \u202e\x00 end"


@pytest.fixture
def texts(tokenizer: Tokenizer) -> TokenTexts:
    return TokenTexts(tokenizer)


def packed(tokenizer: Tokenizer, documents: list[str], length: int, isolate: bool = True):
    """A batch of one row of `length` positions: the documents, one behind the other, then padding."""
    ids = [i for text in documents for i in [tokenizer.separator_id, *tokenizer.encode(text).tolist()]]
    row = np.zeros((1, length + 1), dtype=np.int64)
    count = min(len(ids), length + 1)
    row[0, :count] = ids[:count]
    builder = BatchBuilder(tokenizer.separator_id, tokenizer.byte_lengths, isolate)
    return builder(row, np.array([7]), [count - 1]), ids[:count]


def test_a_window_is_read_off_the_batch(tokenizer: Tokenizer, texts: TokenTexts) -> None:
    documents = [*make_texts(3, seed=2, words=8), HOSTILE]
    batch, ids = packed(tokenizer, documents, 400)
    (window,) = windows_of(batch, texts)
    assert "".join(token.text for token in window.tokens) == "".join(f"<|endoftext|>{text}" for text in documents)
    assert [token.id for token in window.tokens] == ids
    lengths = [1 + len(tokenizer.encode(text)) for text in documents]
    ends = np.cumsum(lengths)
    ends[-1] -= 1  # the last token is only predicted
    assert window.blocks == list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))
    assert window.num_padding == 400 - len(ids) + 1
    assert window.num_learned == len(ids) - 1
    assert [token.learned for token in window.tokens] == [False] + [True] * (len(ids) - 1)
    assert window.num_stops == len(documents) - 1
    assert (window.sample, window.num_bytes) == (7, sum(len(text.encode()) for text in documents))
    assert window.tokens[-1].position is None
    assert [t.position for t in window.tokens[: lengths[0] + 2]] == [*range(lengths[0]), 0, 1]
    assert window.surprises == []
    # The isolation mask, against its definition.
    ids_of = batch["document_ids"][0].tolist()
    for query in range(0, 400, 7):
        for key in range(0, 400, 5):
            expected = key <= query and ids_of[query] == ids_of[key] >= 0
            assert window.allowed(query, key) == expected


def test_no_isolation_and_a_full_window(tokenizer: Tokenizer, texts: TokenTexts) -> None:
    batch, ids = packed(tokenizer, make_texts(9, seed=2), 64, isolate=False)
    (window,) = windows_of(batch, texts)
    assert (window.blocks, window.isolated, len(window.tokens)) == ([(0, 64)], False, 65)
    assert window.allowed(63, 0)
    padded, ids = packed(tokenizer, ["short"], 64, isolate=False)
    assert windows_of(padded, texts)[0].num_padding == 64 - len(ids) + 1


def test_batches_of_other_objectives(tokenizer: Tokenizer, texts: TokenTexts) -> None:
    prompt, answer = tokenizer.encode("the question").tolist(), tokenizer.encode(" an answer").tolist()
    ids = torch.tensor([[*prompt, *answer, tokenizer.separator_id]])
    labels = torch.cat([ids[:, 1:], torch.tensor([[IGNORE_INDEX]])], 1)
    labels[:, : len(prompt) - 1] = IGNORE_INDEX  # only the answer and its stop are learned
    (window,) = windows_of({"input_ids": ids, "labels": labels}, texts)
    learned = [token.text for token in window.tokens if token.learned]
    assert "".join(learned) == " an answer<|endoftext|>"
    assert (window.num_stops, window.isolated, window.num_learned) == (1, False, len(answer) + 1)
    (window,) = windows_of([{"input_ids": ids, "labels": labels}], texts, isolated=True)  # one document a row
    assert (window.isolated, window.blocks) == (True, [(0, ids.shape[1])])
    # Pairs, flat or nested, and prompts without labels.
    flat = {
        "chosen_input_ids": ids,
        "chosen_labels": labels,
        "rejected_input_ids": ids,
        "sample_ids": torch.tensor([3]),
    }
    nested = {"chosen": {"input_ids": ids, "labels": labels}, "rejected": {"input_ids": ids}}
    for batch in (flat, nested):
        chosen, rejected = windows_of([batch], texts)
        assert (chosen.name, rejected.name) == ("chosen", "rejected")
        assert (chosen.has_labels, rejected.has_labels) == (True, False)
    assert windows_of(flat, texts)[1].sample == 3
    mask = torch.tensor([[0, 0] + [1] * (ids.shape[1] - 2)])
    assert windows_of({"input_ids": ids, "attention_mask": mask}, texts)[0].num_padding == 2
    wrong = labels.clone()
    wrong[0, -3] = 5
    assert windows_of({"input_ids": ids, "labels": wrong}, texts)[0].surprises == [
        "1 labels are not the token that follows"
    ]


def test_hidden_characters_are_written_out() -> None:
    assert visible("a\x1b[31m\u202eb\x00\n\u2028") == "a\\x1b[31m\\u202eb\\x00⏎\\u2028"
    assert visible("naïve 漢字 👩‍👧 e\u0301") == "naïve 漢字 👩‍👧 e\u0301"


class Page(HTMLParser):
    """Collects the tags, and the text outside of `style`."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "link", "br", "polygon", "rect"):
            self.open.append(tag)
        for name, value in attrs:
            assert not (name in ("src", "href") and value and not value.startswith(("data:", "#")))

    def handle_endtag(self, tag):
        if tag not in ("polygon", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def report(tokenizer: Tokenizer, texts: TokenTexts) -> Report:
    documents = [HOSTILE, "second"]
    batch, ids = packed(tokenizer, documents, 200)
    first = 1 + len(tokenizer.encode(HOSTILE))
    pieces = [
        Piece(0, first, "a<b>.txt", 3, "0123456789abcdef" * 2, 0, first, "web"),
        Piece(first, len(ids), "b.txt", 0, "fedcba9876543210" * 2, 0, len(ids) - first, "web"),
    ]
    return Report("T<x>: step 4", [("tokenizer", "x & y")], windows_of(batch, texts, [pieces]) * 3, num_shown=1, step=4)


def test_the_page_stands_alone_and_is_harmless(tokenizer: Tokenizer, texts: TokenTexts) -> None:
    html = page.render(report(tokenizer, texts))
    assert html.count('<div class="scroll"><table>') == html.count("<table>") > 0  # wide tables move by themselves
    parsed = Page(html)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert not re.search(r"https?://|url\(|@import", html)
    assert {"\x1b", "\x00", "\u202e"}.isdisjoint(html)
    for shown in (
        "T<x>: step 4",
        "a<b>.txt:3",
        "<script>alert('",
        "漢",
        "🙂",
        "0123456789abcdef…",
        "web",
        "2 more windows",
    ):
        assert shown in parsed.text, shown
    assert parsed.tags.count("polygon") == 2  # a block of attention for each document


@pytest.mark.parametrize("colour", [False, True])
def test_the_terminal_shows_the_same(tokenizer: Tokenizer, texts: TokenTexts, colour: bool) -> None:
    told = terminal.render(report(tokenizer, texts), colour, width=70)
    plain = re.sub(r"\x1b\[[\d;]*m", "", told)
    assert ("\x1b" in told) == colour
    assert "\x1b" not in plain
    assert "\\x1b[31m" in plain
    assert "a<b>.txt:3 · sha256 0123456789ab…" in plain
    assert max(map(len, (line for line in plain.splitlines() if line.startswith(" ▌ ") and "sha256" not in line))) <= 90
    if not colour:
        assert "⟦■<|endoftext|>⟧" in plain
    table = terminal.trace_table(report(tokenizer, texts), colour=False)
    assert "optimizer step 4: 3 windows" in table
    assert re.search(r"7  0-\d+ +0123456789abcdef  0-\d+/\d+ +web: a<b>\.txt:3", table)
