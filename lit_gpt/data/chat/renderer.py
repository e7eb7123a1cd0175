"""Render messages to ids and the mask of the assistant's tokens.

The template gives the text and the character spans of the answers in it (`answers`); the text is split at the ends of
these spans, and each piece is tokenized separately. Thus a token never crosses the border between prompt and answer,
and the prompt of a training row has exactly the ids with which the model is prompted later.

Templates differ in the input that they accept: contents as texts or as lists of parts, arguments of tool calls as
objects or as JSON text. What a template accepts is determined once, by rendering a conversation and checking whether
its contents appear.

Content that spells a special token (`<|im_end|>`) must not become one: an otherwise unused character is inserted into
it before rendering and removed before tokenization.
"""

import json
import re
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from lit_gpt.data.chat.answers import ANSWER, ANSWERED, ASKED, CALLED, QUESTION, TOOL, Answer, AnswerFinder
from lit_gpt.data.chat.messages import Message, Tool, ToolCall, check_messages, normalise_messages
from lit_gpt.data.chat.template import ChatTemplate, template_of
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError

_GUARDS = range(0xE000, 0xF900)  # private use area: no text needs all of these characters


class RenderedChat(NamedTuple):
    """A conversation as tokens."""

    ids: list[int]
    mask: list[bool]
    """True on the tokens that the assistant has to produce."""
    text: str
    notes: tuple[str, ...] = ()
    """Notes on what the template cannot render, each of which is counted."""


class ChatRenderer:
    """Renders conversations with a chat template and a tokenizer.

    Args:
        tokenizer: Tokenizer of the model.
        template: Chat template; None takes the tokenizer's own.

    Raises:
        UserError: if there is no template.

    Example:
        >>> renderer = ChatRenderer(tokenizer, load_chat_template("alpaca"))  # doctest: +SKIP
        >>> renderer([{"role": "user", "content": "Hi"}], add_generation_prompt=True).ids  # doctest: +SKIP
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> None:
        import tokenizers

        self.tokenizer = tokenizer
        self.template = template_of(tokenizer) if template is None else template
        # A copy that parses special tokens; the tokenizer for training data does not.
        self._backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        self._backend.encode_special_tokens = False
        self._inner = _without_opening_space(self._backend)
        special = {t.content: i for i, t in self._backend.get_added_tokens_decoder().items() if t.special}
        self.special_ids = frozenset(special.values())
        longest_first = sorted(special, key=len, reverse=True)
        self._special_texts = longest_first
        self._special = re.compile("|".join(map(re.escape, longest_first))) if special else None

    def __call__(
        self, messages: Sequence[Message], add_generation_prompt: bool = False, tools: Sequence[Tool] | None = None
    ) -> RenderedChat:
        """Render a conversation for generation; its mask is False throughout.

        Args:
            messages: The turns, which are normalized here.
            add_generation_prompt: Whether to end with the start of the assistant's next turn.
            tools: Tools that the assistant may call.

        Raises:
            UserError: if the template does not render them.
        """
        turns, described, guard = self._guarded(messages, tools)
        text = self._render(turns, add_generation_prompt, described)[0]
        cuts = []
        for index, turn in enumerate(turns):
            if turn["role"] == "assistant":
                answer = self._attempt(turns, index, described)
                if answer is not None and text.startswith(answer.text):
                    cuts += [(*span, False) for span in answer.spans]
        return self._tokens(text, cuts, guard)

    def learned(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> list[RenderedChat]:
        """Render a conversation for training: every answer of weight 1 is in exactly one of the renderings.

        Args:
            messages: The turns, which are normalized here.
            tools: Tools that the assistant may call.

        Returns:
            One rendering, unless the template renders answers differently once turns follow; each ends with an answer.
            An empty list if no answer is trained on.

        Raises:
            UserError: if the template does not render them or omits something, or answers cannot be distinguished from
                the rest.
        """
        turns, described, guard = self._guarded(messages, tools)
        answers: list[tuple[Answer, bool]] = []
        for index, turn in enumerate(turns):
            if turn["role"] == "assistant" and turn.get("weight", 1):
                answers.append((self._answers.find(turns, index, described), True))
            elif turn["role"] == "assistant" and (context := self._attempt(turns, index, described)) is not None:
                answers.append((context, False))
        chosen: list[Answer] = []  # the last answer of each rendering
        for answer, is_learned in reversed(answers):
            if is_learned and not any(later.text.startswith(answer.text) for later in chosen):
                chosen.append(answer)
        renderings = []
        taken: set[int] = set()
        for last in reversed(chosen):
            cuts = []
            notes: tuple[str, ...] = ()
            for position, (answer, is_learned) in enumerate(answers):
                if last.text.startswith(answer.text):
                    mine = is_learned and position not in taken
                    taken.add(position)
                    cuts += [(*span, mine) for span in answer.spans]
                    notes += tuple(note for note in answer.notes if mine and note not in notes)
            renderings.append(self._tokens(last.text, cuts, guard)._replace(notes=notes))
        return renderings

    def _guarded(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> tuple[list[Message], list[Tool], str]:
        """Return turns and tools in which no content spells a special token, and the inserted guard character."""
        turns = normalise_messages(messages)
        described = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools or ()]
        guard = self._unused_character([turns, described])
        return (
            _replace(turns, lambda t: self._guard(t, guard)),
            _replace(described, lambda t: self._guard(t, guard)),
            guard,
        )

    def _attempt(self, turns: list[Message], index: int, tools: list[Tool]) -> Answer | None:
        """Find an answer that is only context; return None if the template does not show it."""
        try:
            return self._answers.find(turns, index, tools, check=False)
        except UserError:
            return None

    def _tokens(self, text: str, spans: Sequence[tuple[int, int, bool]], guard: str) -> RenderedChat:
        """Tokenize a text in pieces: the spans, each trained on or not, and the text between them."""
        ids: list[int] = []
        mask: list[bool] = []
        end_before = 0
        for start, end, learned in (*spans, (len(text), len(text), False)):
            for first, last, mine in ((end_before, start, False), (start, end, learned)):
                encoded = self._encode(text, first, last, guard)
                ids += encoded
                mask += [mine] * len(encoded)
            end_before = end
        return RenderedChat(ids, mask, text.replace(guard, ""))

    @cached_property
    def _answers(self) -> AnswerFinder:
        return AnswerFinder(self._render, self._special, self.template.name, self.template.marks_answers)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Return the ids that end an answer: the template's stop tokens (also after tool calls) and the end of text.

        Raises:
            UserError: if the template does not end an answer with a special token of the tokenizer, so that the model
                would never learn to stop.
        """
        stops = [self._answers.find([ASKED, ANSWERED], 1, [], check=False).text]
        if self._answers.after_calls is not None:
            stops.append(self._answers.after_calls.stop)
        found = [self._ids(self._backend, text)[-1] for text in stops]
        return tuple(dict.fromkeys((*found, self.tokenizer.separator_id)))

    def check(self) -> None:
        """Render a conversation of one turn, to detect problems of the template before the data is read.

        Raises:
            UserError: if it does not render, its special tokens are missing, or it does not show where answers are.
        """
        missing = [token for token in self.template.tokens if self.tokenizer.backend.token_to_id(token) is None]
        if missing:
            raise UserError(
                f"the chat template ({self.template.name}) needs the tokens {', '.join(missing)}, which the tokenizer "
                "does not have; give the template to the fine-tuning data module, which adds them, or use 'alpaca', "
                "which needs none"
            )
        assert self.stop_ids

    # ------------------------------------------------------------------ text

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Tool], marks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        turns = [self._accepted_form(message) for message in messages]
        return self._jinja(turns, add_generation_prompt, tools, marks)

    def _jinja(
        self, messages: Sequence[Any], add_generation_prompt: bool, tools: Sequence[Tool], marks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        separator = self.tokenizer.separator
        variables: dict[str, Any] = {"bos_token": separator, "eos_token": separator, "unk_token": separator}
        conversations: Any = [messages]
        try:
            result: Any = render_jinja_template(
                conversations=conversations,
                tools=list(tools) or None,
                chat_template=self.template.source,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=add_generation_prompt,
                **(variables | self._named_tokens),
            )
        except (
            jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError,
        ) as error:  # fmt: skip
            raise UserError(f"the chat template ({self.template.name}) does not render: {_reason(error)}") from error
        texts, positions = result
        return texts[0], list(positions[0]) if marks else []

    def _accepted_form(self, message: Message) -> dict[str, Any]:
        """Return a message with contents and tool calls in the form that the template accepts."""
        taken: dict[str, Any] = dict(message)
        if message.get("tool_calls"):
            content, kinds = self._call_form
            taken["content"] = message["content"] or content
            taken["tool_calls"] = [_with_arguments(call, kinds) for call in message["tool_calls"]]
        if self._accepts_parts and isinstance(taken["content"], str):
            taken["content"] = [{"type": "text", "text": taken["content"]}]
        return taken

    @cached_property
    def _accepts_parts(self) -> bool:
        """Whether contents appear only if given as lists of parts, as in templates of multimodal models."""
        for as_parts in (False, True):
            probe: list[dict[str, Any]] = [dict(ASKED), dict(ANSWERED)]
            for message in probe:
                if as_parts:
                    message["content"] = [{"type": "text", "text": message["content"]}]
            try:
                text = self._jinja(probe, False, [])[0]
            except UserError:
                continue
            if QUESTION in text and ANSWER in text:
                return as_parts
        return False

    @cached_property
    def _call_form(self) -> tuple[str | None, tuple[type, ...]]:
        """The content of a turn with only tool calls, and the accepted argument types: objects, JSON text or both.

        Most templates accept objects and write them as JSON; some accept both and write the same. DeepSeek's accept
        JSON text, which other templates would quote. DeepSeek-R1's recognize calls only if the content is null.
        """
        for content in ("", None):
            texts: dict[type, str] = {}
            for kind, arguments in ((dict, {"k": ANSWER}), (str, json.dumps({"k": ANSWER}, ensure_ascii=False))):
                call = {**CALLED, "function": {"name": "f", "arguments": arguments}}
                calling = {"role": "assistant", "content": content, "tool_calls": [call]}
                try:
                    text = self._jinja([ASKED, calling], False, [TOOL])[0].partition(QUESTION)[2]
                except UserError:
                    continue
                if ANSWER in text and '\\"' not in text:
                    texts[kind] = "".join(text.split())
            if texts:
                return content, tuple(kind for kind in texts if texts[kind] == texts.get(dict, texts[kind]))
        return "", (dict,)

    @cached_property
    def _named_tokens(self) -> dict[str, str]:
        """Return `bos_token` and other named tokens of the tokenizer's configuration."""
        config = json.loads((self.tokenizer.files or {}).get("tokenizer_config.json", b"{}"))
        named = {}
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = config.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                named[name] = value
        return named

    # ------------------------------------------------------------------ tokens

    def _unused_character(self, contents: Any) -> str:
        """Return a character that occurs in neither contents nor template, to break up spelled-out special tokens."""
        present = set(self.template.source)
        _replace(contents, lambda text: present.update(text) or text)  # type: ignore[func-returns-value]
        unused = next((chr(code) for code in _GUARDS if chr(code) not in present), None)
        if unused is None:
            raise UserError("it uses every character of Unicode's private use area, one of which must be unused")
        return unused

    def _guard(self, text: str, guard: str) -> str:
        if self._special is None:
            return text
        return self._special.sub(lambda match: match[0][0] + guard + match[0][1:], text)

    def _encode(self, text: str, start: int, end: int, guard: str) -> list[int]:
        """Return the ids of `text[start:end]` in the context of the text before it."""
        before = next((token for token in self._special_texts if text.endswith(token, 0, start)), "")
        ids: list[int] = []
        try:
            for number, piece in enumerate(text[start:end].split(guard)):
                if self._inner is None or (number == 0 and start == 0):
                    ids += self._ids(self._backend, piece)
                elif number == 0 and before:
                    ids += self._ids(self._backend, before + piece)[1:]
                else:
                    found = None if self._special is None else self._special.search(piece)
                    cut = len(piece) if found is None else found.start()
                    ids += self._ids(self._inner, piece[:cut]) + self._ids(self._backend, piece[cut:])
        except TypeError as error:
            raise UserError("it contains a lone surrogate, which is not valid Unicode") from error
        return ids

    @staticmethod
    def _ids(backend: Any, text: str) -> list[int]:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids if text else []
        return ids


def _without_opening_space(backend: Any) -> Any:
    """Return a tokenizer that puts no space before a text, or None if the given one puts none.

    SentencePiece tokenizers (Llama 2, Mistral 7B) do; within a split text it would be an additional space.
    """
    import tokenizers

    rules = json.loads(backend.to_str())
    rules["normalizer"] = _no_space(rules["normalizer"])
    rules["pre_tokenizer"] = _no_space(rules["pre_tokenizer"])
    inner = tokenizers.Tokenizer.from_str(json.dumps(rules))
    inner.encode_special_tokens = False
    same = inner.encode("a", add_special_tokens=False).ids == backend.encode("a", add_special_tokens=False).ids
    return None if same else inner


def _no_space(rule: dict[str, Any] | None) -> dict[str, Any] | None:
    if rule is None or rule["type"] == "Prepend":
        return None
    if rule["type"] == "Metaspace":
        return {name: value for name, value in rule.items() if name != "add_prefix_space"} | {"prepend_scheme": "never"}
    if rule["type"] == "ByteLevel":
        return rule | {"add_prefix_space": False}
    if rule["type"] == "Sequence":
        [(name, parts)] = [item for item in rule.items() if item[0] != "type"]
        return {"type": "Sequence", name: [kept for part in parts if (kept := _no_space(part)) is not None]}
    return rule


_renderers: "weakref.WeakKeyDictionary[Tokenizer, ChatRenderer]" = weakref.WeakKeyDictionary()


def _renderer(tokenizer: Tokenizer, template: ChatTemplate | None) -> ChatRenderer:
    known = _renderers.get(tokenizer)
    if known is None or (template is not None and template != known.template):
        known = ChatRenderer(tokenizer, template)
        _renderers[tokenizer] = known
    return known


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    tools: Sequence[Tool] | None = None,
    template: ChatTemplate | None = None,
) -> list[int]:
    """Return the token ids of a conversation that the model should continue.

    Args:
        tokenizer: Tokenizer of the model.
        messages: The turns, in OpenAI's format.
        add_generation_prompt: Whether to end with the start of the assistant's turn.
        tools: Tools that the assistant may call.
        template: Chat template; None takes the tokenizer's own.

    Raises:
        UserError: if there is no template, the roles are out of order, or the template does not render them.
    """
    turns = normalise_messages(messages)
    check_messages(turns)
    return _renderer(tokenizer, template)(turns, add_generation_prompt, tools).ids


def render_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    tools: Sequence[Tool] | None = None,
    template: ChatTemplate | None = None,
) -> str:
    """Return the text that `render` tokenizes."""
    turns = normalise_messages(messages)
    check_messages(turns)
    return _renderer(tokenizer, template)(turns, add_generation_prompt, tools).text


def stop_token_ids(tokenizer: Tokenizer, template: ChatTemplate | None = None) -> tuple[int, ...]:
    """Return the ids that end an answer (see `ChatRenderer.stop_ids`)."""
    return _renderer(tokenizer, template).stop_ids


def _with_arguments(call: ToolCall, kinds: tuple[type, ...]) -> dict[str, Any]:
    """Return a tool call with its arguments unchanged, or in the form that a template accepts."""
    function = call["function"]
    arguments: Any = function["arguments"]
    if type(arguments) not in kinds:
        arguments = json.loads(arguments) if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _replace(value: Any, change: Any) -> Any:
    """Return a copy of plain data in which `change` is applied to every string."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_replace(key, change): _replace(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace(item, change) for item in value]
    return value


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
