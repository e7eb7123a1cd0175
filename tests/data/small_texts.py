"""Small texts made by a seed; imported by tests and by the processes that they start."""

import random

WORDS = [
    "the",
    "window",
    "reads",
    "tokens",
    "of",
    "ein",
    "Fluß",
    "und",
    "über",
    "naïve",
    "漢字",
    "🙂",
    "x = 42;",
    "return None",
]


def make_texts(count: int, seed: int = 0, words: int = 60) -> list[str]:
    """Different texts of up to `words` words, also outside ASCII, the same for the same seed."""
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(1, words))) for i in range(count)]
