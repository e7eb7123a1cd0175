import re
from html.parser import HTMLParser

import pytest
from pipeline_corpora import articles, card, prepare, write_recipe

from lit_gpt.data.card import card_page

HOSTILE = "<script>alert('1')</script><img src=x onerror=alert(2)>&amp;\x00\x1b[31m \u202egnirts </pre></section>"


class Reader(HTMLParser):
    """Collects tags, attributes and what a browser would show."""

    def __init__(self):
        super().__init__()
        self.tags, self.words, self.opened, self.wrong = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "i", "rect", "path", "polyline", "br", "img"} or tag == "i":
            self.opened.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in {"rect", "meta"}:
            return
        if not self.opened or self.opened.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.words.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    (folder / "texts").mkdir()
    texts = articles(30)
    for number, text in enumerate([*texts, texts[3], texts[4], f"{HOSTILE} {texts[5][:300]}", "short " + HOSTILE]):
        (folder / "texts" / f"{number:02}.txt").write_text(text.replace("\x00", ""))
    (folder / "texts" / "40.txt").write_text(texts[20] + " Write to jane.doe@example.org or 81.2.69.160.")
    path = write_recipe(
        folder / "r.yaml",
        out=str(folder / "out"),
        sources=[{"files": str(folder / "texts"), "license": "PSF-2.0 <b>"}],
        steps=[
            {"language": {"keep": ["en"], "min_confidence": 0.3}},
            {"length": {"min_chars": 300}},
            "pii",
            "exact_duplicates",
        ],
        tokenizer={"vocab_size": 400},
        val_fraction=0.2,
    )
    assert prepare(path) == 0
    return folder / "out"


def test_the_page_shows_everything_and_needs_nothing(out):
    page = (out / "card.html").read_text()
    reader = read(page)
    assert reader.wrong == []
    tags = [tag for tag, _ in reader.tags]
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form"} & set(tags)
    for tag, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        if tag == "a":
            assert attributes["href"].startswith("#")
        assert "src" not in attributes
    assert not re.search(r"url\(|@import|https?://", page)
    assert (
        "meta",
        {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"},
    ) in reader.tags
    words = " ".join(reader.words)
    for title in (
        "What each step did",
        "Why documents were dropped",
        "Duplicates",
        "Personal data and secrets",
        "Length of the documents",
        "Languages",
        "Sources and licenses",
        "Tokens",
        "Recipe",
    ):
        assert title in words
    ids = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    assert {attributes["href"][1:] for tag, attributes in reader.tags if tag == "a"} <= ids
    assert "PSF-2.0 <b>" in words
    assert page.count("<svg") > 10


def test_hostile_text_is_text(out):
    page = (out / "card.html").read_text()
    assert "<script" not in page
    assert "onerror=alert(2)>" not in page
    assert "&lt;script&gt;alert" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert not re.search(r"\b1 (documents|clusters)", page)


def test_the_card_knows_duplicates_and_personal_data(out):
    numbers = card(out)
    steps = {step["name"]: step for step in numbers["steps"]}
    duplicates = steps["exact_duplicates"]
    assert duplicates["documents_in"] - duplicates["documents_out"] == 2
    assert duplicates["num_clusters"] == 2
    assert duplicates["cluster_sizes"] == {"2": 2}
    for cluster in duplicates["clusters"]:
        assert [member["kept"] for member in cluster["members"]] == [True, False]
        assert cluster["members"][0]["text"] == cluster["members"][1]["text"]
    assert sum(steps["pii"]["counts"].values()) == 2
    assert "en" in numbers["languages"]
    assert numbers["languages"]["en"]["left"][0] == numbers["left"]["documents"]
    assert steps["length"]["rejected"]["too_short"][0] == 1 or "too_short" not in steps["length"]["rejected"]


def test_the_page_comes_from_the_numbers_alone(out):
    assert card_page(card(out)) == (out / "card.html").read_text()
