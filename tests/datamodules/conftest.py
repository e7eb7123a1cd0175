import random
from pathlib import Path

import pytest

WORDS = [
    "the",
    "module",
    "reads",
    "text",
    "from",
    "files",
    "und",
    "über",
    "naïve",
    "漢字",
    "🙂",
    "x = 42;",
    "return None",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 40 small files in `texts`."""
    rng = random.Random(0)
    (tmp_path / "texts").mkdir()
    for i in range(40):
        text = f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(20, 60)))
        (tmp_path / "texts" / f"{i:02}.txt").write_text(text, encoding="utf-8")
    return tmp_path
