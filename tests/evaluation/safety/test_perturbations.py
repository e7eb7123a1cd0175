"""Texts asked otherwise: what each perturbation does, and that it does it again."""

import base64
import codecs
import random

import pytest

from lit_gpt.errors import UserError
from lit_gpt.evaluation.safety.robustness import INJECTED_MARK, perturb, perturbations, select_perturbations, typos

TEXT = "How do I kill a Python process, please?"


def apply(name: str, text: str = TEXT) -> str:
    return perturb(text, perturbations()[name], seed=0, item="i")


def test_the_plain_ones():
    assert apply("upper_case") == TEXT.upper()
    assert apply("lower_case") == TEXT.lower()
    assert apply("alternating_case", "abc de!") == "AbC dE!"
    assert apply("no_spaces", " a b\nc ") == "abc"
    assert apply("leet", "Test is OK") == "7357 15 0K"


def test_encodings_can_be_read_again():
    assert base64.b64decode(apply("base64", "Grüße?").splitlines()[-1]).decode() == "Grüße?"
    assert codecs.decode(apply("rot13").splitlines()[-1], "rot13") == TEXT


@pytest.mark.parametrize("name", ["novelist", "no_rules", "grandmother", "no_refusals", "new_instructions"])
def test_frames_keep_the_text(name):
    text = "What is {this} {0} %s?"
    assert text in apply(name, text)
    assert apply(name, text) != text


def test_the_injected_instruction_names_the_mark():
    assert INJECTED_MARK in apply("new_instructions")


@pytest.mark.parametrize("name", sorted(perturbations()))
def test_all_are_pure_and_survive_any_text(name):
    for text in ("", "a", "?!", "漢字 🙂", "I", TEXT, "{braces} {", "zz" * 500):
        first = apply(name, text)
        assert apply(name, text) == first
        assert isinstance(first, str)
    perturbation = perturbations()[name]
    assert perturbation.description


def test_typos_are_few_and_differ_by_seed_and_item():
    long = "the quick brown fox jumps over the lazy dog " * 20
    letters = sum(character.isalpha() for character in long)
    changed = typos(long, random.Random(0))
    assert changed != long
    kept = sum(one == other for one, other in zip(sorted(long), sorted(changed), strict=False))
    assert kept > 0.5 * letters
    assert abs(len(changed) - len(long)) < 0.1 * len(long)
    one = perturbations()["typos"]
    assert perturb(long, one, 0, "a") != perturb(long, one, 0, "b")
    assert perturb(long, one, 0, "a") != perturb(long, one, 1, "a")


def test_every_word_gets_at_least_one_typo_and_numbers_none():
    assert typos("2 + 2 = 4?", random.Random(0)) == "2 + 2 = 4?"
    for seed in range(50):
        assert typos("a", random.Random(seed)) != ""


def test_choosing():
    assert [one.name for one in select_perturbations(["leet", "typos", "leet"])] == ["leet", "typos"]
    assert len(select_perturbations(None)) == len(perturbations())
    families = {one.family for one in select_perturbations(None)}
    assert families == {"typos", "casing", "encoding", "role play", "injection"}
    with pytest.raises(UserError, match="'base46'.*base64"):
        select_perturbations(["base46"])
    with pytest.raises(UserError, match="perturbations is empty"):
        select_perturbations([])
