"""Prose made by a seed: sentences of English-looking words, different from each other; imported by the tests."""

import random

_SYLLABLES = [
    "ba",
    "be",
    "bi",
    "bo",
    "da",
    "de",
    "di",
    "do",
    "fa",
    "fe",
    "ga",
    "go",
    "ha",
    "he",
    "ka",
    "ko",
    "la",
    "le",
    "li",
    "lo",
    "ma",
    "me",
    "mi",
    "mo",
    "na",
    "ne",
    "ni",
    "no",
    "pa",
    "pe",
    "ra",
    "re",
    "ri",
    "ro",
    "sa",
    "se",
    "si",
    "so",
    "ta",
    "te",
    "ti",
    "to",
    "va",
    "ve",
]
STOP_WORDS = ["the", "of", "and", "to", "that", "with", "have", "be"]


def make_vocabulary(size: int = 4000, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words: dict[str, None] = {}
    while len(words) < size:
        words["".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4)))] = None
    return list(words)


VOCABULARY = make_vocabulary()


def make_sentence(rng: random.Random, words: int = 12) -> str:
    chosen = [rng.choice(STOP_WORDS) if rng.random() < 0.3 else rng.choice(VOCABULARY) for _ in range(words)]
    return " ".join(chosen).capitalize() + "."


def make_document(rng: random.Random, sentences: int = 30) -> str:
    """Paragraphs of five sentences, one a line."""
    lines = [make_sentence(rng, rng.randint(8, 18)) for _ in range(sentences)]
    return "\n".join(" ".join(lines[start : start + 5]) for start in range(0, len(lines), 5))


def change_words(text: str, share: float, rng: random.Random) -> str:
    """Replaces a share of the words by others."""
    return "\n".join(
        " ".join(rng.choice(VOCABULARY) if rng.random() < share else word for word in line.split(" "))
        for line in text.split("\n")
    )
