"""card.html: the card's numbers as one page that needs nothing else. What it says comes from `card.json` alone."""

import json
from typing import Any

from lit_gpt.data.cache import human_bytes
from lit_gpt.data.card import remaining, removed
from lit_gpt.data.card.charts import count, counted, escape, share
from lit_gpt.data.card.style import CSS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The browser itself refuses whatever would come from elsewhere, should a text find a way past the escaping."""


def card_page(card: dict[str, Any]) -> str:
    """Returns the page.

    Args:
        card: What `collect_card` returned.
    """
    sections = [
        ("steps", "What each step did", removed.steps_section(card)),
        ("reasons", "Why documents were dropped", removed.reasons_section(card)),
        ("duplicates", "Duplicates", removed.duplicates_section(card)),
        ("personal", "Personal data and secrets", removed.personal_section(card)),
        ("lengths", "Length of the documents", remaining.lengths_section(card)),
        ("languages", "Languages", remaining.languages_section(card)),
        ("sources", "Sources and licences", remaining.sources_section(card)),
        ("tokens", "Tokens", remaining.tokens_section(card)),
        ("input", "Input that could not be read", remaining.bad_input_section(card)),
        ("recipe", "Recipe", _recipe_section(card)),
    ]
    shown = [(anchor, title, body) for anchor, title, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in shown)
    body = "".join(f'<section id="{anchor}"><h2>{escape(title)}</h2>{body}</section>' for anchor, title, body in shown)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(card['name'])} · data card</title><style>{CSS}</style></head><body><main>"
        f"<header><h1>{escape(card['name'])}</h1>{_lead(card)}{_tiles(card)}<nav>{links}</nav></header>{body}"
        f"<footer>lit_gpt data card, recipe and input <code>{escape(card['key'][:16])}</code>. "
        "The same numbers for programs: card.json.</footer></main></body></html>\n"
    )


def _lead(card: dict[str, Any]) -> str:
    read, left = card["read"], card["left"]
    dropped = read["documents"] - left["documents"]
    before, after = (counted(part["documents"], "document") for part in (read, left))
    went = f"{dropped:,} dropped ({share(dropped, read['documents'])})" if dropped else "none dropped"
    sentence = (
        f"{human_bytes(read['bytes'])} of text read in {before}. {human_bytes(left['bytes'])} left in {after}; {went}."
    )
    return f'<p class="lead">{escape(sentence)}</p>'


def _tiles(card: dict[str, Any]) -> str:
    read, left, tokens = card["read"], card["left"], card["tokens"]
    tiles = [
        (share(left["documents"], read["documents"]), "of the documents kept"),
        (share(left["bytes"], read["bytes"]), "of the text kept"),
    ]
    if tokens:
        tiles += [
            (count(tokens["text_tokens"]), "tokens"),
            (f"{tokens['bytes_per_token']:.2f}", "bytes of text a token"),
        ]
    else:
        tiles.append((human_bytes(left["bytes"]), "of clean text"))
    if len(card["sources"]) > 1:
        tiles.append((str(len(card["sources"])), "sources"))
    body = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(words)}</span></div>' for value, words in tiles
    )
    return f'<div class="tiles">{body}</div>'


def _recipe_section(card: dict[str, Any]) -> str:
    import yaml

    # Through JSON, so that the same list written twice is not shown as a YAML alias.
    text = yaml.safe_dump(json.loads(json.dumps(card["recipe"])), sort_keys=False, allow_unicode=True, width=100)
    return f'<p class="note">What decides the bytes, as it was asked for.</p><pre>{escape(text)}</pre>'
