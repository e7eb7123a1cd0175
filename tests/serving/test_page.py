"""The page: one document that asks nothing of any other place, and never reads what a model wrote as HTML."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from lit_gpt.serving.page import SCRIPTS, VENDORED, content_security_policy, page_html

FOLDER = resources.files("lit_gpt.serving.page")
OWN_SCRIPT = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)


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
    assert "require-trusted-types-for 'script'; trusted-types dompurify;" in policy
    assert not re.search(r"https?:", policy)


def test_a_browser_that_has_the_page_gets_no_second_copy(serve):
    with serve(lambda prompt, params: "fine") as server:
        _, headers, body = server.request("GET", "/")
        assert len(body) > 100_000
        for known in (headers["etag"], f'"other", W/{headers["etag"]}'):
            status, again, rest = server.request("GET", "/", headers={"If-None-Match": known})
            assert (status, rest, again["etag"]) == (304, b"", headers["etag"])
            assert again["content-security-policy"] == headers["content-security-policy"]
        assert server.request("GET", "/", headers={"If-None-Match": '"other"'})[::2] == (200, body)


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
    addresses = set(re.findall(r"https?://[^\s\"'`\\]+", OWN_SCRIPT))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not a place


def test_only_the_sanitiser_makes_html_of_text():
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "new Function"):
        assert way not in OWN_SCRIPT, way


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
    asked = set(re.findall(r"\$\(\"([\w-]+)\"\)", OWN_SCRIPT))
    assert asked <= set(elements.ids)
    icons = set(re.findall(r"(?:iconButton|icon)\(\"(\w+)\"", OWN_SCRIPT))
    assert {f"i-{name}" for name in icons} <= set(elements.ids)


def test_all_parts_are_in_the_document(elements):
    assert {part.name for part in FOLDER.iterdir() if part.name.endswith(".js")} == set(SCRIPTS)
    for name in (*VENDORED, *SCRIPTS):
        lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
        assert max(lines[:5], key=len).replace("<!--", "\\x3C!--") in page_html(), name
    # The browser reads the script to its end: nothing in it ends it, or opens a comment of HTML.
    assert elements.text["script"].rstrip().endswith(lines[-1])
    assert "<!--" not in elements.text["script"]
    assert "sourceMappingURL" not in page_html()


def test_libraries_are_copies_of_what_was_published():
    listed = json.loads((FOLDER / "vendor/vendor.json").read_text(encoding="utf-8"))
    assert [f"vendor/{one['file']}" for one in listed] == list(VENDORED)
    licences = (FOLDER / "vendor/LICENSES.txt").read_text(encoding="utf-8")
    for one in listed:
        assert hashlib.sha256((FOLDER / "vendor" / one["file"]).read_bytes()).hexdigest() == one["sha256"], one
        assert one["license"] in licences
        assert all(inside.split()[0] in licences for inside in one.get("contains", ()))
