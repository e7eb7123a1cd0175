"""The page: one document that asks nothing of any other place, and never reads what a model wrote as HTML."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from lit_gpt.serving.page import SCRIPTS, content_security_policy, page_html


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.ids, self.inside, self.text = [], [], None, {"script": "", "style": ""}

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.found.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.inside = tag if tag in self.text else self.inside

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        if self.inside:
            self.text[self.inside] += data


@pytest.fixture(scope="module")
def elements():
    parser = Elements()
    parser.feed(page_html())
    return parser


def test_it_is_served_with_a_policy_that_lets_nothing_else_in(serve):
    with serve(lambda prompt, params: "fine") as server:
        status, headers, body = server.request("GET", "/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert body.decode() == page_html()
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:", policy)


def test_the_policy_names_the_very_script_and_style(elements):
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(elements.text[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in content_security_policy()


def test_nothing_is_loaded_from_anywhere(elements):
    for tag, attributes in elements.found:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
        assert not [name for name in attributes if name.startswith("on")], "the policy stops handlers in attributes"
        assert "style" not in attributes
    assert not re.search(r"url\(|@import", elements.text["style"])
    addresses = set(re.findall(r"https?://[^\s\"'`\\]+", elements.text["script"]))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not a place


def test_no_text_becomes_html(elements):
    script = elements.text["script"]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "new Function"):
        assert way not in script, way


def test_every_control_has_a_name(elements):
    labelled = {attributes.get("for") for tag, attributes in elements.found if tag == "label"}
    page = page_html()
    for tag, attributes in elements.found:
        if tag in ("input", "textarea"):
            wrapped = re.search(
                rf'<label class="field"[^>]*>(?:(?!</label>).)*id="{attributes["id"]}"', page, re.DOTALL
            )
            wrapped = wrapped or re.search(
                rf'<label id="[\w-]+" class="field">(?:(?!</label>).)*id="{attributes["id"]}"', page, re.DOTALL
            )
            assert attributes["id"] in labelled or "aria-label" in attributes or wrapped, attributes
        if tag == "button" and attributes.get("class") in ("icon", "round"):
            assert attributes.get("aria-label"), attributes
    assert ("html", {"lang": "en"}) in elements.found
    assert any(attributes.get("aria-live") == "polite" for _, attributes in elements.found)


def test_ids_are_unique_and_the_script_finds_what_it_asks_for(elements):
    assert len(set(elements.ids)) == len(elements.ids)
    asked = set(re.findall(r"\$\(\"([\w-]+)\"\)", elements.text["script"]))
    assert asked <= set(elements.ids)
    icons = set(re.findall(r"(?:iconButton|icon)\(\"(\w+)\"", elements.text["script"]))
    assert {f"i-{name}" for name in icons} <= set(elements.ids)


def test_all_parts_are_in_the_document():
    folder = resources.files("lit_gpt.serving.page")
    names = {part.name for part in folder.iterdir() if part.name.endswith(".js")}
    assert names == set(SCRIPTS)
    for name in names:
        assert (folder / name).read_text(encoding="utf-8").splitlines()[0] in page_html()
