"""Chat templates: what they render, and that exactly the assistant's words and its stop token are learned."""

import random

import pytest
import transformers

from lit_gpt.data.chat import (
    CHAT_TEMPLATES,
    ChatRenderer,
    ChatTemplate,
    check_messages,
    load_chat_template,
    normalise_messages,
    render,
    render_text,
    stop_token_ids,
    template_of,
    with_chat_template,
)
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.errors import UserError

STOPS = {
    "alpaca": "<|endoftext|>",
    "chatml": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "qwen": "<|im_end|>",
}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Go on"},
    {"role": "assistant", "content": "Bye"},
]
# Written by hand from the model cards; where a family has no system role, its own way of placing the prompt.
RENDERED = {
    "alpaca": "<|endoftext|>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello<|endoftext|>\n\n"
    "### Instruction:\nGo on\n\n### Response:\nBye<|endoftext|>",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    "Hello<|im_end|>\n<|im_start|>user\nGo on<|im_end|>\n<|im_start|>assistant\nBye<|im_end|>\n",
    "gemma": "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    "<start_of_turn>user\nGo on<end_of_turn>\n<start_of_turn>model\nBye<end_of_turn>\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "Hello<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nGo on<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nBye<|eot_id|>",
    "mistral": "<s>[INST]Be brief.\n\nHi[/INST]Hello</s>[INST]Go on[/INST]Bye</s>",
}
RENDERED["qwen"] = RENDERED["chatml"]
UNMARKED = (
    "{#- tokens: <|u|> <|a|> <|e|> -#}"
    "{% for m in messages %}{{ '<|u|>' if m.role == 'user' else '<|a|>' }}{{ m.content }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)


@pytest.fixture(params=CHAT_TEMPLATES)
def preset(request, tokenizer):
    """A preset's name, and a tokenizer that has it."""
    return request.param, with_chat_template(tokenizer, load_chat_template(request.param))


def random_chats(count, seed=0):
    """Conversations of one to four turns, also of special tokens spelled out, emoji and template syntax."""
    rng = random.Random(seed)
    words = ["a", "naïve", "🙂", "漢字", "{{ x }}", "{% if %}", "<|im_end|>", "</s>", "[INST]", "<end_of_turn>", "\n\n"]
    words += ["<|eot_id|>", "<|endoftext|>", "### Response:", "  two  spaces", "def f():\n    pass"]

    def text():
        return "w" + " ".join(rng.choices(words, k=rng.randint(1, 8))) + "w"

    for _ in range(count):
        chat = [{"role": "system", "content": text()}] if rng.random() < 0.5 else []
        for _ in range(rng.randint(1, 4)):
            chat += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
        yield chat


def learned(renderer, rendered):
    return renderer.tokenizer.decode([i for i, mine in zip(rendered.ids, rendered.mask, strict=True) if mine])


def test_text_is_the_familys(preset):
    name, tokenizer = preset
    assert render_text(tokenizer, CHAT, add_generation_prompt=False) == RENDERED[name]


def test_learned_tokens_are_the_answers_and_their_stop_token(preset):
    name, tokenizer = preset
    renderer = ChatRenderer(tokenizer)
    stop = renderer.stop_ids[0]
    assert tokenizer.decode([stop]) == STOPS[name]
    for chat in random_chats(40):
        (rendered,) = renderer.learned(chat)
        assert tokenizer.decode(rendered.ids) == rendered.text
        assert renderer(chat).ids[: len(rendered.ids)] == rendered.ids
        answers = [message["content"] for message in chat if message["role"] == "assistant"]
        assert learned(renderer, rendered) == "".join(answer + STOPS[name] for answer in answers)
        # The stop token stands only where an answer ends, never where a content spells it.
        ends = [
            i for i, (token, mine) in enumerate(zip(rendered.ids, rendered.mask, strict=True)) if mine and token == stop
        ]
        assert len(ends) == len(answers)
        assert all(i + 1 == len(rendered.mask) or not rendered.mask[i + 1] or i in ends for i in ends)


def test_a_rows_prompt_is_what_the_model_is_prompted_with(preset):
    _, tokenizer = preset
    renderer = ChatRenderer(tokenizer)
    for chat in random_chats(20, seed=1):
        ids, mask, _, _ = renderer.learned(chat)[0]
        last = max(i for i in range(1, len(mask)) if mask[i] and not mask[i - 1])
        # In mistral and alpaca answers never touch; in general the last answer begins where the mask last rises.
        assert render(tokenizer, chat[:-1]) == ids[:last]


def test_transformers_renders_the_saved_folder_alike(preset, tmp_path):
    _, tokenizer = preset
    tokenizer.save(tmp_path)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    mine = load_tokenizer(tmp_path)
    chat = [m for m in next(random_chats(1, seed=5)) if m["role"] != "system"]
    assert render_text(mine, chat, False) == other.apply_chat_template(chat, tokenize=False)
    plain = [{"role": "user", "content": "Hi"}]
    assert render(mine, plain) == other.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]


def test_new_tokens_are_appended(tokenizer, tmp_path):
    grown = with_chat_template(tokenizer, load_chat_template("chatml"))
    assert grown.vocab_size == tokenizer.vocab_size + 2
    assert grown.separator_id == tokenizer.separator_id
    assert grown.encode("the window").tolist() == tokenizer.encode("the window").tolist()
    again = with_chat_template(grown, load_chat_template("qwen"))
    assert again.vocab_size == grown.vocab_size
    grown.save(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == grown.vocab_size
    assert template_of(load_tokenizer(tmp_path)).source == load_chat_template("chatml").source


TOOLS = [{"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}]
CALLING = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]},
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "Two"},
]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("qwen", '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'),
        ("llama3", '{"name": "add", "parameters": {"a": 1}}<|eot_id|>'),
        ("mistral", '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]</s>'),
    ],
)
def test_tool_calls_are_learned_and_results_are_not(tokenizer, name, call):
    renderer = ChatRenderer(with_chat_template(tokenizer, load_chat_template(name)))
    check_messages(normalise_messages(CALLING), for_training=True)
    (rendered,) = renderer.learned(CALLING, tools=TOOLS)
    assert learned(renderer, rendered) == f"{call}Two{STOPS[name]}"
    assert '"add"' in rendered.text.split(call)[0]


@pytest.mark.parametrize("name", ["alpaca", "chatml", "gemma"])
def test_a_template_without_tools_says_so(tokenizer, name):
    renderer = ChatRenderer(with_chat_template(tokenizer, load_chat_template(name)))
    with pytest.raises(UserError, match="no form for tools"):
        renderer(CALLING)


def test_answers_of_an_unmarked_template_are_found_by_its_own_prefixes(tokenizer):
    renderer = ChatRenderer(with_chat_template(tokenizer, ChatTemplate(UNMARKED, "own")))
    (rendered,) = renderer.learned(CHAT[1:])
    assert learned(renderer, rendered) == "Hello<|e|>Bye<|e|>"
    assert renderer.tokenizer.decode(renderer.stop_ids[:1]) == "<|e|>"


def test_a_template_that_rewrites_history_gives_a_rendering_for_each_answer(tokenizer):
    source = UNMARKED.replace("{{ m.content }}", "{{ m.content if loop.last or m.role == 'user' else '...' }}")
    renderer = ChatRenderer(with_chat_template(tokenizer, ChatTemplate(source, "own.jinja")))
    first, second = renderer.learned(CHAT[1:])
    assert (learned(renderer, first), learned(renderer, second)) == ("Hello<|e|>", "Bye<|e|>")
    assert render(renderer.tokenizer, CHAT[1:4]) == second.ids[: second.mask.index(True)]
    source = UNMARKED.replace("{{ m.content }}", "{{ m.content if loop.last else '...' }}")
    renderer = ChatRenderer(with_chat_template(tokenizer, ChatTemplate(source, "own.jinja")))
    with pytest.raises(UserError, match="message 2 differently once it follows"):  # the question too
        renderer.learned(CHAT[1:])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.content }}", "does not render"),
        ("{{ messages[9].content + 1 }}", "does not render"),
        ("{{ ''.__class__.__mro__ }}", "does not render"),
        ("{{ raise_exception('no') }}", "no"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "no special token"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{% generation %}{{ m.content }}."
            "{% endgeneration %}{% endif %}{% endfor %}",
            "with no special token",
        ),
        (
            "{#- tokens: <|missing|> -#}{% for m in messages %}{{ m.content }}<|missing|>{% endfor %}",
            r"needs the tokens <\|missing\|>",
        ),
    ],
)
def test_a_bad_template_is_named(tokenizer, source, message):
    with pytest.raises(UserError, match=message):
        ChatRenderer(tokenizer, ChatTemplate(source, "bad.jinja")).check()


def test_no_template_says_how_to_give_one(tokenizer):
    with pytest.raises(UserError, match="--chat_template"):
        render(tokenizer, CHAT[1:2])
    assert stop_token_ids(tokenizer, load_chat_template("alpaca")) == (tokenizer.separator_id,)


def test_a_users_file(tmp_path, tokenizer):
    path = tmp_path / "own.jinja"
    path.write_text(UNMARKED)
    assert load_chat_template(path).tokens == ("<|u|>", "<|a|>", "<|e|>")
    with pytest.raises(UserError, match="neither a preset"):
        load_chat_template("chatlm")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        load_chat_template(path)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "no messages"),
        ([{"role": "assistant", "content": "x"}], "out of order: message 1"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}], "out of order: message 2"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "message 2 is from 'system'"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "y"}], "message 2 is from 'tool'"),
        ([{"role": "user", "content": "x"}], "must be the assistant's"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}], "empty answer"),
        ([{"role": "user", "content": ""}], r"message 1 \(user\) is empty"),
        ([{"role": "bot", "content": "x"}], "role 'bot'"),
        ([{"role": "user"}], "no content"),
        (["x"], "not an object"),
        ("x", "not a list"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "only text"),
        ([{"role": "user", "content": 3}], "int, not text"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}],
            "not JSON",
        ),
    ],
)
def test_a_bad_conversation_is_named(chat, message):
    with pytest.raises(UserError, match=message):
        check_messages(normalise_messages(chat), for_training=True)


def test_a_turn_of_weight_zero_is_context(tokenizer):
    renderer = ChatRenderer(with_chat_template(tokenizer, load_chat_template("chatml")))
    chat = [dict(message) for message in CHAT]
    chat[2]["weight"] = 0
    (rendered,) = renderer.learned(chat)
    assert learned(renderer, rendered) == "Bye<|im_end|>"
    assert rendered.ids == renderer.learned(CHAT)[0].ids
