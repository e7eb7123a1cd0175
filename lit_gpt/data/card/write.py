"""Writes the card: the page first, `card.json` last, because a corpus with a `card.json` is whole."""

from pathlib import Path

from lit_gpt.data.cache import write_atomic, write_json
from lit_gpt.data.card.collect import collect_card
from lit_gpt.data.card.page import card_page
from lit_gpt.data.pipeline.recipe import Recipe


def write_card(out: Path, recipe: Recipe, key: str) -> None:
    """Writes `card.html` and `card.json` of a prepared corpus.

    Args:
        out: Its folder.
        recipe: What made it.
        key: Its key.
    """
    card = collect_card(out, recipe, key)
    write_atomic(out / "card.html", card_page(card).encode())
    write_json(out / "card.json", card)
