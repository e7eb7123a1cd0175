"""Chat templates, their rendering to tokens, and the mask of the assistant's tokens.

`messages` validates and normalizes a conversation, a `ChatTemplate` (Jinja, from the tokenizer's folder, a preset or a
user's file) renders it to text in transformers' sandbox, and `ChatRenderer` converts the text to ids with a mask that
is True exactly on the tokens that the assistant has to produce: its text and its stop token.
"""

from lit_gpt.data.chat.messages import Message, Tool, ToolCall, check_messages, normalise_messages
from lit_gpt.data.chat.renderer import ChatRenderer, RenderedChat, render, render_text, stop_token_ids
from lit_gpt.data.chat.template import (
    CHAT_TEMPLATES,
    ChatTemplate,
    load_chat_template,
    template_of,
    with_chat_template,
)

__all__ = [
    "CHAT_TEMPLATES",
    "ChatRenderer",
    "ChatTemplate",
    "Message",
    "RenderedChat",
    "Tool",
    "ToolCall",
    "check_messages",
    "load_chat_template",
    "normalise_messages",
    "render",
    "render_text",
    "stop_token_ids",
    "template_of",
    "with_chat_template",
]
