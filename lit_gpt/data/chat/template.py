"""Load chat templates (Jinja) by preset name, from a file, or from a tokenizer's folder.

A preset starts with a comment `{#- tokens: <|a|> <|b|> -#}` that lists the special tokens it needs.
`with_chat_template` adds those that a tokenizer lacks; a user's own file may list them in the same way.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError

CHAT_TEMPLATES = ("alpaca", "chatml", "gemma", "llama3", "mistral", "qwen")
"""Names of the presets."""

TEMPLATE_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"
_TOKENS = re.compile(r"^\{#-?\s*tokens:(.*?)-?#\}", re.DOTALL)
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template in the dialect of transformers.

    Attributes:
        source: Jinja source text.
        name: Name in messages: a preset's name, a file, or the tokenizer that has it.
    """

    source: str
    name: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """Special tokens listed in its first comment."""
        found = _TOKENS.match(self.source)
        return tuple(found[1].split()) if found else ()

    @property
    def marks_answers(self) -> bool:
        """Whether `{% generation %}` marks the assistant's part."""
        return _GENERATION.search(self.source) is not None


def load_chat_template(name_or_file: str | Path) -> ChatTemplate:
    """Load a preset by its name, or a Jinja file.

    Raises:
        UserError: if it is neither, or the file is not text.
    """
    name = str(name_or_file)
    if name in CHAT_TEMPLATES:
        return ChatTemplate(_preset(name), name)
    path = Path(name_or_file).expanduser()
    if not path.is_file():
        raise UserError(
            f"chat template {name!r} is neither a preset ({', '.join(CHAT_TEMPLATES)}) nor a file; name one of them"
        )
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise UserError(f"{name} is larger than {MAX_TEMPLATE_BYTES} bytes: that is not a chat template")
        return ChatTemplate(path.read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the chat template {name} cannot be read: {error}") from error


def template_of(tokenizer: Tokenizer) -> ChatTemplate:
    """Return the template in a tokenizer's folder: `chat_template.jinja`, or the one in `tokenizer_config.json`.

    Raises:
        UserError: if it has none.
    """
    files = tokenizer.files or {}
    if TEMPLATE_FILE in files:
        return ChatTemplate(files[TEMPLATE_FILE].decode(), f"the tokenizer's {TEMPLATE_FILE}")
    template = json.loads(files.get(_CONFIG_FILE, b"{}")).get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    if isinstance(template, str):
        return ChatTemplate(template, f"the tokenizer's {_CONFIG_FILE}")
    raise UserError(
        "the model has no chat template; give one: --chat_template <preset or file> "
        f"(presets: {', '.join(CHAT_TEMPLATES)}), or put {TEMPLATE_FILE} into the tokenizer's folder"
    )


def has_template(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer's folder contains a chat template."""
    try:
        template_of(tokenizer)
    except UserError:
        return False
    return True


def with_chat_template(tokenizer: Tokenizer, template: ChatTemplate, extra_tokens: tuple[str, ...] = ()) -> Tokenizer:
    """Return a tokenizer whose folder contains the template and whose vocabulary contains its special tokens.

    New tokens are appended, so that existing ids do not change.

    Args:
        tokenizer: Tokenizer to copy; it is not changed.
        template: The template to write.
        extra_tokens: Additional special tokens to add.
    """
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    wanted = [*template.tokens, *extra_tokens]
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    new = [token for token in dict.fromkeys(wanted) if token not in special]
    backend.encode_special_tokens = False
    # A token that exists as ordinary text (`[INST]`) keeps its id and becomes special.
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in new])
    files = dict(tokenizer.folder_files())
    if new:
        files["tokenizer.json"] = backend.to_str(pretty=True).encode()
    config = json.loads(files.get(_CONFIG_FILE, b"{}"))
    config.pop("chat_template", None)
    if new:
        listed = config.get("added_tokens_decoder")
        if isinstance(listed, dict):
            for token in new:
                listed[str(backend.token_to_id(token))] = {"content": token, "special": True, "normalized": False}
    files[_CONFIG_FILE] = (json.dumps(config, indent=2) + "\n").encode()
    files[TEMPLATE_FILE] = template.source.encode()
    return Tokenizer(backend, tokenizer.separator, files)


@cache
def _preset(name: str) -> str:
    return (resources.files(__package__) / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
