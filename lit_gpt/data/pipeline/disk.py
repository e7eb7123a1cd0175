"""Whether it will all fit on the disk, asked before the work starts."""

from pathlib import Path

from lit_gpt.data.cache import check_disk_space, say
from lit_gpt.data.pipeline.recipe import Recipe
from lit_gpt.data.pipeline.segments import is_corpus_step
from lit_gpt.pages.text import human_bytes

DOCUMENTS = 0.4
"""Bytes on disk of a byte of text in document shards: zstandard makes 0.25 to 0.4 of prose and code."""

FINDINGS = {"duplicate_substrings": 3.0}
OTHER_FINDINGS = 0.15
"""Of what a corpus step's stages leave, while it runs: 8 bytes a word, twice, for passages; for the others 16 to 112
bytes a document or 8 a line, which is little for documents of a kilobyte and more."""

TOKENS = 0.7
"""Of token shards at two bytes a token and three bytes of text a token."""


def needed_bytes(recipe: Recipe, text_bytes: int) -> int:
    """Estimates the most that is on the disk at one time.

    While the steps run, a segment's documents in and out stand side by side, with a corpus step's findings; at the end
    the clean documents and the tokens.
    """
    findings = max(
        (FINDINGS.get(spec.name, OTHER_FINDINGS) for spec in recipe.steps if is_corpus_step(spec)), default=0.0
    )
    copies = 2 if recipe.steps else 1
    rejected = DOCUMENTS if recipe.keep_rejected else 0.02
    steps = DOCUMENTS * copies + findings + rejected
    tokens = DOCUMENTS + rejected + (0.0 if recipe.tokenizer is None else TOKENS)
    return int(text_bytes * max(steps, tokens))


def check_disk(recipe: Recipe, text_bytes: int | None) -> None:
    """Refuses to begin what would not fit; says so if the size is unknown.

    Raises:
        UserError: if the disk of `out` has too little room.
    """
    text_bytes = recipe.expected_bytes if text_bytes is None else text_bytes
    if text_bytes is None:
        say("disk space not checked: the sources do not know their size; set expected_gigabytes to have it checked")
        return
    needed = needed_bytes(recipe, text_bytes) - _present(recipe.out)
    check_disk_space(recipe.out, needed, f"preparing {human_bytes(text_bytes)} of text", "set out to a larger disk")


def _present(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
