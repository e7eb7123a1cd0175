"""The page in headless Chromium: a person's path, conversations that go wrong, and what a screen reader is told.

Needs the Python package `playwright`, a Chromium on the path, and for one test `axe-playwright-python`.
PICTURES names a folder for screenshots.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, and a chromium on the path")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the path"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
REPLY = """It has **strong** words.

## A heading

1. one
2. two

- [x] a task

```python
def add(a, b):
    return a + b
```

| a | b |
|---|--:|
| 1 | 2 |

<script>window.attacked = true</script> <img src=x onerror="window.attacked = true">
[good](https://example.org/a_(b)) [bad](javascript:alert(1)) ![picture](https://example.org/p.png)
"""
IDLE = "() => document.querySelectorAll('.assistant').length && !document.querySelector('.streaming')"
LAST_ANSWER = "[...document.querySelectorAll('.assistant .body')].pop()"


def reply(prompt, params):
    last = prompt.rsplit("<|im_start|>user", 1)[-1]
    for word, answer in {
        "forever": None,
        "nothing": "",
        "short": "Fine.",
        "think": "<think>\nhm **so**\n</think>\n\nYes.",
    }.items():
        if word in last:
            return answer
    return REPLY


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Tabs:
    """Tabs of one browser profile on one server, and everything that they complained of."""

    def __init__(self, browser, server, folder, **options):
        self.address, self.folder = f"http://127.0.0.1:{server.port}", folder
        self.context = browser.new_context(viewport={"width": 1280, "height": 860}, **options)
        self.context.set_default_timeout(20_000)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.complaints, self.outside, self.asked = [], [], []

    def open(self):
        page = self.context.new_page()
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        page.on("request", self._seen)
        page.goto(self.address)
        page.locator("#ideas button").first.wait_for()
        return page

    def _seen(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)
        if request.method == "POST":
            self.asked.append(json.loads(request.post_data))

    def picture(self, page, name):
        page.screenshot(path=self.folder / f"{name}.png", animations="disabled")


@pytest.fixture
def tabs(browser, serve, tmp_path):
    """`with tabs(server, colour_scheme=...) as opened`; afterwards nothing was asked of another host."""

    @contextlib.contextmanager
    def start(server, complaints=(), **options):
        folder = Path(os.environ.get("PICTURES", tmp_path))
        folder.mkdir(parents=True, exist_ok=True)
        opened = Tabs(browser, server, folder, **options)
        try:
            yield opened
        finally:
            print("the browser said:", *opened.complaints, sep="\n")  # shown where the test fails
            opened.context.close()
        assert opened.outside == []
        assert [line for line in opened.complaints if not any(re.search(one, line) for one in complaints)] == []

    return start


@pytest.fixture
def server(serve):
    with serve(reply) as running:
        yield running


def say(page, text, wait=True):
    page.fill("#input", text)
    page.keyboard.press("Enter")
    if wait:
        page.wait_for_function(IDLE)


def press(page, label, index=-1):
    buttons = page.get_by_label(label, exact=True)
    buttons.nth(index if index >= 0 else buttons.count() + index).click()


def answers(page):
    return page.locator(".assistant .body").all_text_contents()


def roles(request):
    return [message["role"] for message in request["messages"]]


# ------------------------------------------------------------------ a person's path


def test_a_persons_path(server, tabs):
    server.engine.pace_seconds = 0.01
    with tabs(server, color_scheme="light") as opened:
        page = opened.open()
        opened.picture(page, "welcome")
        assert page.evaluate("document.activeElement.id") == "input"

        # Type and stream.
        page.keyboard.type("Show me ")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("Markdown")
        assert page.input_value("#input") == "Show me \nMarkdown"
        page.keyboard.press("Enter")
        page.wait_for_function(f"() => {LAST_ANSWER}?.textContent.length > 20")
        assert page.locator(".streaming").count() == 1
        opened.picture(page, "streaming")
        page.wait_for_function(IDLE)
        opened.picture(page, "answered")
        body = page.locator(".assistant .body").first
        assert body.locator("h3").text_content() == "A heading"
        assert body.locator("strong").text_content() == "strong"
        assert body.locator("ol > li").count() == 2
        assert body.locator("td").all_text_contents() == ["1", "2"]
        assert body.locator("pre code").text_content() == "def add(a, b):\n    return a + b"
        assert body.locator(".hljs-keyword").all_text_contents() == ["def", "return"]
        assert body.locator("input[type=checkbox]").get_attribute("aria-label") == "a task"
        links = body.locator("a").evaluate_all("all => all.map((a) => a.getAttribute('href'))")
        assert links == ["https://example.org/a_(b)", "https://example.org/p.png"]
        assert body.locator("script, img, iframe").count() == 0
        assert "<script>window.attacked = true</script>" in body.text_content()
        assert not page.evaluate("window.attacked === true")

        # Copy a block of code.
        press(page, "Copy the code")
        page.wait_for_function("() => document.querySelector('#status').textContent === 'Copied.'")
        assert page.evaluate("navigator.clipboard.readText()") == "def add(a, b):\n    return a + b"

        # Stop, answer again, look at the earlier answer.
        say(page, "go on forever", wait=False)
        page.wait_for_function(f"() => {LAST_ANSWER}.textContent.length > 10")
        page.click("#send")
        page.wait_for_function(IDLE)
        assert page.locator(".assistant .note").last.text_content().endswith("stopped")
        press(page, "Answer again")
        page.wait_for_function(f"() => {LAST_ANSWER}.textContent.length > 10")
        page.keyboard.press("Escape")
        page.wait_for_function(IDLE)
        assert page.get_by_text("2 / 2").count() == 1
        press(page, "Earlier answer")
        assert page.get_by_text("1 / 2").count() == 1
        opened.picture(page, "stopped")

        # Edit.
        press(page, "Edit")
        page.fill(".editor textarea", "say something short")
        opened.picture(page, "editing")
        page.keyboard.press("Enter")
        page.wait_for_function(IDLE)
        assert answers(page)[1] == "Fine."
        assert page.locator(".user .body").all_text_contents() == ["Show me \nMarkdown", "say something short"]

        # System prompt and sampling.
        page.click("#settings-open")
        page.fill("#set-system", "Answer in rhyme.")
        page.fill("#set-max_tokens", "50")
        page.fill("#set-temperature", "0.3")
        opened.picture(page, "settings")
        page.keyboard.press("Escape")
        say(page, "say something short again")
        request = opened.asked[-1]
        assert request["messages"][0] == {"role": "system", "content": "Answer in rhyme."}
        assert (request["max_tokens"], request["temperature"]) == (50, 0.3)
        assert roles(request)[1:] == ["user", "assistant", "user", "assistant", "user"]

        # Thoughts are folded away.
        say(page, "think")
        thought = page.locator(".thought")
        assert thought.get_attribute("open") is None
        assert thought.locator("summary").text_content() == "Thoughts"
        assert thought.locator("strong").text_content() == "so"

        # Dark.
        page.click("#theme")
        page.click("#theme")
        assert max(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor")))) < 60
        opened.picture(page, "dark")

        # Kept, exported, deleted.
        page.reload()
        page.locator("#conversations .open").first.click()
        assert page.locator(".message").count() == 8
        for kind in ("markdown", "json"):
            with page.expect_download() as file:
                page.click(f"#export-{kind}")
            exported = file.value.path().read_text(encoding="utf-8")
            assert REPLY.strip() in exported if kind == "markdown" else json.loads(exported)["messages"]
        page.locator("#conversations li").first.hover()
        page.locator("#conversations .remove").first.click()
        assert page.locator("#conversations li").count() == 0


def test_on_a_telephone(server, tabs):
    phone = {"is_mobile": True, "has_touch": True, "color_scheme": "dark"}
    with tabs(server, **phone) as opened:
        page = opened.open()
        page.set_viewport_size({"width": 390, "height": 780})
        opened.picture(page, "phone")
        say(page, "Show me Markdown")
        opened.picture(page, "phone-answered")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        # A wide table scrolls; its words are not broken.
        lines = page.evaluate(
            """() => {
              const body = document.querySelector('.assistant .body');
              body.append(renderMarkdown(`| Heading | b |\n|-|-|\n| x | ${'word '.repeat(30)} |`));
              const heading = document.createRange();
              heading.selectNodeContents([...body.querySelectorAll('th')].find((cell) => cell.textContent === 'Heading'));
              return heading.getClientRects().length;
            }"""
        )
        assert lines == 1
        page.click("#menu")
        page.locator("#new").wait_for(state="visible")
        opened.picture(page, "phone-menu")
        page.click("#new")
        assert page.locator(".message").count() == 0


# ------------------------------------------------------------------ turns without an answer


def busy(server):
    server.service.admission.in_flight = server.service.admission.capacity


FAILURES = {
    "empty": ("nothing", (), "empty"),
    "too long": ("a" * 70_000, ("400",), "tokens"),
    "busy": ("hello", ("429",), "busy"),
    "stopped": ("forever", (), "stopped"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_conversation_goes_on_after_a_turn_without_an_answer(server, tabs, name):
    text, complaints, reason = FAILURES[name]
    with tabs(server, complaints, color_scheme="dark") as opened:
        page = opened.open()
        say(page, "short")
        if name == "busy":
            busy(server)
        if name == "stopped":
            server.engine.pace_seconds = 2
            say(page, text, wait=False)
            page.keyboard.press("Escape")
            page.wait_for_function(IDLE)
            server.engine.pace_seconds = 0
        else:
            say(page, text)
        assert reason in page.locator("#messages .failure span").text_content()
        opened.picture(page, f"failed-{name.replace(' ', '-')}")
        server.service.admission.in_flight = 0
        say(page, "short again")
        assert answers(page)[-1] == "Fine."
        assert roles(opened.asked[-1]) == ["user", "assistant", "user"]
        assert text not in str(opened.asked[-1])
        # The turn is still there: it can be answered again as long as nothing follows, edited and removed.
        press(page, "Remove this turn", 1)
        assert page.locator(".user .body").all_text_contents() == ["short", "short again"]


def test_a_turn_that_failed_is_answered_again(server, tabs):
    with tabs(server, ("429",)) as opened:
        page = opened.open()
        busy(server)
        say(page, "short")
        assert page.locator("#messages .failure").is_visible()
        assert page.get_by_label("Answer again").count() == 0  # there is one button for it
        server.service.admission.in_flight = 0
        page.get_by_role("button", name="Try again").click()
        page.wait_for_function(IDLE)
        assert answers(page) == ["Fine."]
        assert page.locator("#messages .failure").count() == 0


def test_an_answer_that_fails_keeps_the_earlier_one(server, tabs):
    with tabs(server, ("429",)) as opened:
        page = opened.open()
        say(page, "short")
        busy(server)
        press(page, "Answer again")
        page.wait_for_function(IDLE)
        server.service.admission.in_flight = 0
        press(page, "Earlier answer")
        assert answers(page) == ["Fine."]
        say(page, "short")
        assert roles(opened.asked[-1]) == ["user", "assistant", "user"]


def test_what_came_in_is_kept_when_the_page_is_closed(server, tabs):
    with tabs(server) as opened:
        page = opened.open()
        say(page, "forever", wait=False)
        page.wait_for_function(f"() => {LAST_ANSWER}?.textContent.length > 50")
        page.reload()
        page.locator("#conversations .open").first.click()
        assert len(answers(page)[0]) > 50
        assert page.locator(".note").all_text_contents() == ["not complete"]
        assert page.locator("#messages .failure").count() == 0
        say(page, "short")
        assert roles(opened.asked[-1]) == ["user", "assistant", "user"]


def test_changing_the_conversation_ends_an_answer_and_leaves_every_button_alive(server, tabs):
    with tabs(server) as opened:
        page = opened.open()
        say(page, "short")
        page.click("#new")
        say(page, "forever", wait=False)
        page.wait_for_function(f"() => {LAST_ANSWER}?.textContent.length > 20")
        page.locator("#conversations .open", has_text="short").click()
        page.wait_for_function("() => !document.querySelector('.actions button:disabled')")
        assert answers(page) == ["Fine."]
        page.locator("#conversations .open", has_text="forever").click()
        assert len(answers(page)[0]) > 20


def test_the_oldest_turns_are_left_out_when_a_conversation_is_longer_than_the_context(serve, tabs):
    with serve(reply) as server, tabs(server, ("400",)) as opened:
        page = opened.open()
        for number in range(3):
            say(page, f"short {number} " + "word " * 500)
        server.service.served.__dict__["max_length"] = 1500  # as of a model with a shorter context
        page.reload()
        page.locator("#conversations .open").first.click()
        say(page, "short at last")
        assert answers(page)[-1] == "Fine."
        assert "did not fit" in page.locator(".note").last.text_content()
        assert len(opened.asked[-1]["messages"]) < 7


# ------------------------------------------------------------------ storage


def test_two_tabs_keep_one_anothers_turns(server, tabs):
    with tabs(server) as opened:
        first, second = opened.open(), opened.open()
        say(first, "short one")
        say(second, "short two")
        assert second.locator("#conversations .open").all_text_contents() == ["short two", "short one"]
        # The same conversation in both: what one adds, the other shows.
        second.locator("#conversations .open", has_text="short one").click()
        say(second, "short three")
        first.get_by_text("short three").wait_for()
        # Both at once: both are kept.
        say(first, "forever", wait=False)
        first.wait_for_function(f"() => {LAST_ANSWER}.textContent.length > 10")
        first.evaluate("save(conversation)")
        second.evaluate("conversation.stamp = 'read before'")
        say(second, "short four")
        first.keyboard.press("Escape")
        first.wait_for_function(IDLE)
        first.reload()
        titles = first.locator("#conversations .open").all_text_contents()
        assert sorted(titles) == ["short one", "short one (2)", "short two"]


def test_a_full_storage_is_said_and_drops_nothing(server, tabs):
    with tabs(server) as opened:
        page = opened.open()
        say(page, "short one")
        page.evaluate(
            """() => {
              let size = 1 << 22;
              for (let n = 0; size > 16; n += 1) {
                try { localStorage.setItem(`fill${n}`, "x".repeat(size)); } catch { size >>= 1; }
              }
            }"""
        )
        page.click("#new")
        say(page, "short two")
        assert page.locator("#unsaved").is_visible()
        opened.picture(page, "full")
        assert page.locator("#conversations .open").all_text_contents() == ["short two", "short one"]
        page.evaluate(
            "for (const name of Object.keys(localStorage)) if (name.startsWith('fill')) localStorage.removeItem(name)"
        )
        say(page, "short three")
        assert not page.locator("#unsaved").is_visible()
        page.reload()
        assert page.locator("#conversations .open").all_text_contents() == ["short two", "short one"]


def test_the_page_lives_with_anything_in_its_storage(server, tabs):
    good = {
        "id": "a",
        "title": "kept",
        "changed": 1,
        "stamp": "s",
        "turns": [{"text": "hi", "answers": [], "shown": 0}],
    }
    bad = [{}, [], None, 7, "text", {**good, "turns": {}}, {**good, "turns": [{}]}, {**good, "id": 3}]
    bad += [{**good, "turns": [{"text": "hi", "answers": [{"text": 4}], "shown": 0}]}]
    bad += [{**good, "turns": [{"text": "hi", "answers": [], "shown": 9}]}]
    with tabs(server) as opened:
        page = opened.open()
        entries = {f"lit_gpt.conversation.{n}": json.dumps(value) for n, value in enumerate(bad)}
        entries |= {"lit_gpt.conversation.a": json.dumps(good), "lit_gpt.conversation.x": "{not json"}
        for settings in ({}, [], 5, {"temperature": "hot", "stop": 4, "top_p": None}):
            entries |= {"lit_gpt.settings": json.dumps(settings), "lit_gpt.theme": json.dumps(settings)}
            page.evaluate(
                "entries => { for (const [k, v] of Object.entries(entries)) localStorage.setItem(k, v) }", entries
            )
            page.evaluate("sessionStorage.setItem('lit_gpt.key', '{}')")
            page.reload()
            page.locator("#ideas button").first.wait_for()
            assert page.locator("#conversations .open").all_text_contents() == ["kept"]
        say(page, "short")
        assert answers(page) == ["Fine."]
        assert opened.asked[-1]["temperature"] == 0.8


def test_a_browser_that_forbids_its_storage(server, tabs):
    with tabs(server) as opened:
        opened.context.add_init_script(
            "for (const name of ['localStorage', 'sessionStorage'])"
            " Object.defineProperty(window, name, { get() { throw new DOMException('no', 'SecurityError'); } });"
        )
        page = opened.open()
        say(page, "short")
        assert answers(page) == ["Fine."]
        assert page.locator("#unsaved").is_visible()


# ------------------------------------------------------------------ texts


def test_a_long_chinese_text_is_continued(serve, tabs):
    with serve(lambda prompt, params: " fine", template=None) as server, tabs(server, ("400",)) as opened:
        page = opened.open()
        say(page, "漢字🙂" * 5000)
        assert answers(page) == [" fine"]
        assert "did not fit" in page.locator(".note").last.text_content()
        assert opened.asked[-1]["prompt"].endswith("漢字🙂")
        say(page, "a half of a character: \ud83d")
        assert answers(page)[-1] == " fine"


def test_no_text_takes_long_to_show(server, tabs):
    with tabs(server) as opened:
        page = opened.open()
        many = 20_000
        for text in (
            "# " + " " * many + "x",
            "*" * many,
            "_a" * many,
            "[" * many,
            "![" * many,
            "[a](" * many,
            "<a " * many,
            "`" * many + "x",
            "> " * many,
            "- " * many,
            "|" * many + "\n" + "|-" * many,
            "https://" + "a." * many,
            "```python\n" + "'\\" * many,
            "a@" * many,
        ):
            assert page.evaluate("text => renderMarkdown(text).textContent.length", text) >= 0


# ------------------------------------------------------------------ accessibility


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(server, tabs, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    with tabs(server, ("429",), color_scheme=scheme) as opened:
        page = opened.open()

        def check(name):
            opened.picture(page, f"axe-{scheme}-{name}")
            found = axe.Axe().run(page).response["violations"]
            assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == [], name

        check("welcome")
        say(page, "Show me Markdown")
        say(page, "think")
        busy(server)
        say(page, "short")
        check("conversation")
        press(page, "Edit")
        check("editor")
        page.keyboard.press("Escape")
        page.click("#settings-open")
        check("settings")
