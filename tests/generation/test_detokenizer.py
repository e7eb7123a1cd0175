import random

import pytest
from small_chats import small_tokenizer

from lit_gpt.generation.detokenizer import Detokenizer, StopStrings

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("text", ["Fluß 漢字 🙂", "👩‍👩‍👧 é ñ", "  two  spaces\n\n"])
def test_never_half_a_character(text):
    tokenizer = small_tokenizer()
    detokenizer = Detokenizer(tokenizer, [1])
    pieces = [detokenizer.add(int(token)) for token in tokenizer.encode(text)]
    assert "".join(pieces) + detokenizer.flush() == text
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_an_incomplete_character_is_shown_at_the_end():
    tokenizer = small_tokenizer()
    ids = tokenizer.encode("🚀").tolist()
    detokenizer = Detokenizer(tokenizer, [])
    assert [detokenizer.add(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert REPLACEMENT in detokenizer.flush()
    assert detokenizer.flush() == ""


def test_bytes_that_make_no_text_do_not_hold_it_back_for_ever():
    tokenizer = small_tokenizer()
    broken = tokenizer.encode("🚀").tolist()[0]
    detokenizer = Detokenizer(tokenizer, [])
    shown = "".join(detokenizer.add(broken) for _ in range(40))
    assert len(shown) >= 32


@pytest.mark.parametrize("seed", range(20))
def test_stop_strings_end_where_a_search_in_the_whole_text_finds_them(seed):
    rng = random.Random(seed)
    stops = tuple("".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3)))
    text = "".join(rng.choices("abc", k=40))
    watcher, shown, at = StopStrings(stops), "", 0
    while at < len(text):
        size = rng.randint(1, 5)
        piece, stopped = watcher.add(text[at : at + size])
        shown += piece
        at += size
        seen = text[:at]
        places = [seen.find(stop) for stop in stops if stop in seen]
        assert stopped == bool(places)
        if stopped:
            assert shown == seen[: min(places)]
            return
        held = seen[len(shown) :]
        assert seen.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops), "nothing is held back without need"
    assert shown + watcher.flush() == text
