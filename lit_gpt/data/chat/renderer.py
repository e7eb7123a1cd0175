"""Messages → ids and the mask of the assistant's tokens.

In stages: the template gives the text and the places of the answers in it (characters); the text is cut at these
places; each piece is tokenised by itself. So a token never straddles the border between prompt and answer, and the
prompt of a training row has the very ids that the model is prompted with later.

Where the answers are comes from the template itself: `{% generation %}` marks them; of a template without these marks
the answer to turn i is what `messages[: i + 1]` renders beyond `messages[: i]` with its generation prompt, up to the
last special token. That holds only if each rendering begins with the one before, and is refused where it does not.

A content that spells a special token (`<|im_end|>`) must not become one: a character that occurs nowhere else is put
inside it before rendering and cut out before tokenising.
"""

import json
import re
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from lit_gpt.data.chat.messages import Message, Tool, check_messages, normalise_messages
from lit_gpt.data.chat.template import ChatTemplate, template_of
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError

_GUARDS = range(0xE000, 0xF900)  # private use: no text needs all of them
_PROBE = [Message(role="user", content="a"), Message(role="assistant", content="b")]


class RenderedChat(NamedTuple):
    """A conversation as tokens."""

    ids: list[int]
    mask: list[bool]
    """True on the tokens that the assistant has to produce."""
    text: str


class ChatRenderer:
    """A chat template on a tokenizer.

    Args:
        tokenizer: Makes the ids.
        template: None takes the tokenizer's own.

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
        # A copy that recognises special tokens; the tokenizer for training data does not.
        self._backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        self._backend.encode_special_tokens = False
        self._inner = _without_opening_space(self._backend)
        special = {t.content: i for i, t in self._backend.get_added_tokens_decoder().items() if t.special}
        self.special_ids = frozenset(special.values())
        longest_first = sorted(special, key=len, reverse=True)
        self._special_texts = longest_first
        self._special = re.compile("|".join(map(re.escape, longest_first))) if special else None

    def __call__(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        tools: Sequence[Tool] | None = None,
        needs_mask: bool = True,
    ) -> RenderedChat:
        """Render a conversation.

        Args:
            messages: The turns; they are normalised here.
            add_generation_prompt: End with what opens the assistant's next turn.
            tools: What the assistant may call.
            needs_mask: Refuse a template that does not show where answers are. Without, such a conversation is
                tokenised in one piece and its mask is False throughout.

        Raises:
            UserError: if the template does not render them, or answers cannot be distinguished from the rest.
        """
        turns = normalise_messages(messages)
        described = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools or ()]
        guard = self._unused_character([turns, described])
        guarded: list[Message] = _replace(turns, lambda text: self._guard(text, guard))
        described = _replace(described, lambda text: self._guard(text, guard))
        answering = [turn for turn in turns if turn["role"] == "assistant"]
        if not answering:
            text, places = self._render(guarded, add_generation_prompt, described)
        elif self.template.marks_answers:
            text, places = self._render(guarded, add_generation_prompt, described, marks=True)
            if len(places) != len(answering):
                raise UserError(
                    f"the chat template ({self.template.name}) marks {len(places)} answers with {{% generation %}} "
                    f"where the conversation has {len(answering)}"
                )
        else:
            text, places = self._answers_by_prefixes(guarded, add_generation_prompt, described, needs_mask)
        ids: list[int] = []
        mask: list[bool] = []
        end_before = 0
        for (start, end), turn in zip(places, answering, strict=False):
            learned = bool(turn.get("weight", 1))
            for first, last, mine in ((end_before, start, False), (start, end, learned)):
                encoded = self._encode(text, first, last, guard)
                ids += encoded
                mask += [mine] * len(encoded)
            end_before = end
        encoded = self._encode(text, end_before, len(text), guard)
        ids += encoded
        mask += [False] * len(encoded)
        return RenderedChat(ids, mask, text.replace(guard, ""))

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the one that this template puts there, and the tokenizer's end of text.

        Raises:
            UserError: if the template ends an answer with no special token of the tokenizer: the model would never
                learn to stop.
        """
        rendered = self(_PROBE)
        learned = [index for index, mine in zip(rendered.ids, rendered.mask, strict=True) if mine]
        last = learned[-1]
        if last not in self.special_ids:
            text = self.tokenizer.decode(learned)
            raise UserError(
                f"the chat template ({self.template.name}) ends the answer 'b' as {text!r}, which is no special token "
                "of the tokenizer, so a model could not learn to stop; name the token that closes an answer in the "
                "template's first line, {#- tokens: <|end|> -#}, so that it is added"
            )
        return tuple(dict.fromkeys((last, self.tokenizer.separator_id)))

    def check(self) -> None:
        """Render a conversation of one turn, to meet what is wrong with the template before the data.

        Raises:
            UserError: if it does not render, its special tokens are missing, or it does not say where answers are.
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
        self, messages: list[Message], add_generation_prompt: bool, tools: Sequence[Tool], marks: bool = False
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
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise UserError(f"the chat template ({self.template.name}) does not render: {_reason(error)}") from error
        texts, places = result
        return texts[0], list(places[0]) if marks else []

    def _answers_by_prefixes(
        self, messages: list[Message], add_generation_prompt: bool, tools: list[Tool], needs_mask: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        text = self._render(messages, add_generation_prompt, tools)[0]
        answers = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], True, tools)[0]
            answered = self._render(messages[: index + 1], False, tools)[0]
            ends = [match.end() for match in (self._special.finditer(answered) if self._special else ())]
            if not (answered.startswith(prompt) and text.startswith(answered)):
                if not needs_mask:
                    return text, []
                raise UserError(
                    f"the chat template ({self.template.name}) has no way to find the assistant's tokens: it has no "
                    "{% generation %} marks, and renders earlier turns otherwise once later ones follow; put the "
                    "assistant's content and its stop token between {% generation %} and {% endgeneration %}"
                )
            answers.append((len(prompt), max([end for end in ends if end > len(prompt)], default=len(answered))))
        return text, answers

    @cached_property
    def _named_tokens(self) -> dict[str, str]:
        """bos_token and the like, as the tokenizer's configuration names them."""
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
        """A character that neither contents nor template have, to break special tokens that contents spell out."""
        present = set(self.template.source)
        _replace(contents, lambda text: present.update(text) or text)  # type: ignore[func-returns-value]
        unused = next((chr(code) for code in _GUARDS if chr(code) not in present), None)
        if unused is None:
            raise UserError("it has every character of Unicode's private use area, of which one must be free")
        return unused

    def _guard(self, text: str, guard: str) -> str:
        if self._special is None:
            return text
        return self._special.sub(lambda match: match[0][0] + guard + match[0][1:], text)

    def _encode(self, text: str, start: int, end: int, guard: str) -> list[int]:
        """Return the ids of `text[start:end]`, as they are after the text before it."""
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
            raise UserError("it holds a lone surrogate, which is no Unicode text") from error
        return ids

    @staticmethod
    def _ids(backend: Any, text: str) -> list[int]:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids if text else []
        return ids


def _without_opening_space(backend: Any) -> Any:
    """Return a tokenizer that puts no space before a text, or None if this one puts none.

    SentencePiece's (Llama 2, Mistral 7B) do; in the middle of a text that has been cut it would be a new space.
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
        tokenizer: Makes the ids.
        messages: The turns, OpenAI's way.
        add_generation_prompt: End with what opens the assistant's turn.
        tools: What the assistant may call.
        template: None takes the tokenizer's own.

    Raises:
        UserError: if there is no template, the roles are out of order, or the template does not render them.
    """
    turns = normalise_messages(messages)
    check_messages(turns)
    return _renderer(tokenizer, template)(turns, add_generation_prompt, tools, needs_mask=False).ids


def render_text(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = True,
    tools: Sequence[Tool] | None = None,
    template: ChatTemplate | None = None,
) -> str:
    """Return the text that `render` tokenises."""
    turns = normalise_messages(messages)
    check_messages(turns)
    return _renderer(tokenizer, template)(turns, add_generation_prompt, tools, needs_mask=False).text


def stop_token_ids(tokenizer: Tokenizer, template: ChatTemplate | None = None) -> tuple[int, ...]:
    """Return the ids that end an answer (see `ChatRenderer.stop_ids`)."""
    return _renderer(tokenizer, template).stop_ids


def _replace(value: Any, change: Any) -> Any:
    """Copy plain data with every string in it changed."""
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
