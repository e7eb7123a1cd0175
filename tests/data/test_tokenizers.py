import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from small_texts import make_texts

from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer, pieces
from lit_gpt.errors import UserError

HOSTILE = "naïve 漢字🙂‍👩 \u202e\u0000\ufeff a\u0301 \r\n\t  <|endoftext|> 12345 don't\n\n  x=1;\n"


def test_training_round_trip_and_determinism(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 320
    assert tokenizer.separator_id == 0
    assert tokenizer.dtype == np.uint16
    assert tokenizer.decode(tokenizer.encode(HOSTILE)) == HOSTILE
    code = (
        "from small_texts import make_texts; from lit_gpt.data.bpe import train_bpe;"
        "print(train_bpe(make_texts(200, seed=99), 320).fingerprint)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == tokenizer.fingerprint


def test_a_text_cannot_forge_the_separator(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("before <|endoftext|> after")
    assert tokenizer.separator_id not in ids
    assert tokenizer.decode(ids) == "before <|endoftext|> after"


def test_merges_are_those_of_a_naive_loop() -> None:
    words = ["low", "low", "low", "lower", "newest", "newest", "widest"]
    trained = train_bpe([" ".join(words)], 262)
    # The algorithm of Sennrich et al. 2016, figure 1, over the words as the GPT-2 pattern splits them.
    splits = [list(("" if i == 0 else "Ġ") + word) for i, word in enumerate(words)]
    vocabulary = trained.backend.get_vocab()
    expected = []
    for _ in range(262 - 257):
        counts: dict[tuple[str, str], int] = {}
        for word in splits:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], [-vocabulary[part] for part in pair]))
        expected.append("".join(best))
        for word in splits:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    learned = sorted((index, token) for token, index in vocabulary.items() if index >= 257)
    assert [token for _, token in learned] == expected


def test_saved_folder_opens_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tok")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tok")
    text = HOSTILE.replace("<|endoftext|>", "")
    assert theirs.encode(text) == tokenizer.encode(text).tolist()
    assert theirs.decode(theirs.encode(text)) == text
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs)) == ("<|endoftext|>", 0, 320)
    assert theirs.encode("a<|endoftext|>")[-1] == 0  # a prompt may hold special tokens, a training text not
    again = load_tokenizer(tmp_path / "tok")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.folder_files() == tokenizer.folder_files()


def test_a_bare_tokenizer_json(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint


def test_truncation_and_padding_in_a_file_are_turned_off(tokenizer: Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode(HOSTILE).tolist() == tokenizer.encode(HOSTILE).tolist()


def test_gpt2_files(tmp_path: Path) -> None:
    trained = json.loads(train_bpe(make_texts(50), 300).backend.to_str())["model"]
    vocabulary = {token: index for token, index in trained["vocab"].items() if token != "<|endoftext|>"}
    vocabulary = {token: place for place, token in enumerate(vocabulary)} | {"<|endoftext|>": 299}
    (tmp_path / "encoder.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in trained["merges"]]
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    loaded = load_tokenizer(tmp_path)
    assert (loaded.separator_id, loaded.vocab_size) == (299, 300)
    assert loaded.decode(loaded.encode(HOSTILE)) == HOSTILE
    loaded.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.encode("the window reads") == loaded.encode("the window reads").tolist()


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_a_long_text_in_pieces_has_the_ids_of_the_whole(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n".join(make_texts(80, seed=3)) + HOSTILE * 5
    trained = train_bpe([text], 400, pattern)  # type: ignore[arg-type]
    whole = trained.encode(text).tolist()
    for limit in (60, 200, 1001):
        parts = list(pieces(text, limit))
        assert "".join(parts) == text
        assert max(map(len, parts)) <= limit
        assert [i for part in parts for i in trained.encode(part).tolist()] == whole
    monkeypatch.setattr("lit_gpt.data.tokenizers.PIECE_CHARACTERS", 200)
    assert trained.encode(text).tolist() == whole


def test_a_text_without_spaces_is_still_cut() -> None:
    assert list(pieces("x" * 10, 4)) == ["xxxx", "xxxx", "xx"]
    assert list(pieces("", 4)) == []
    assert list(pieces("ab cd", 5)) == ["ab cd"]


def test_gpt4_pattern_groups_digits_by_three() -> None:
    trained = train_bpe(["123456 123456 123456"] * 50, 280, "gpt4")
    assert [trained.decode([i]) for i in trained.encode("123456")] == ["123", "456"]


def test_special_tokens_and_vocabulary_bounds() -> None:
    trained = train_bpe(["some text"], 270, special_tokens=["<|user|>", "<|endoftext|>"])
    assert trained.backend.token_to_id("<|user|>") == 1
    assert trained.byte_lengths[:2].tolist() == [0, 0]
    with pytest.raises(UserError, match="vocab_size 257 is below 258"):
        train_bpe(["text"], 257, special_tokens=["<|user|>"])
    with pytest.raises(UserError, match="no text"):
        train_bpe([], 300)


def test_byte_lengths_of_a_byte_level_vocabulary_add_up(tokenizer: Tokenizer) -> None:
    for text in [*make_texts(50, seed=5), HOSTILE]:
        assert tokenizer.byte_lengths[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.byte_lengths[tokenizer.separator_id] == 0


def test_byte_lengths_of_a_sentencepiece_like_vocabulary() -> None:
    vocabulary = {"</s>": 0, "▁the": 1, "▁": 2, "ß": 3, "<0x0A>": 4, "a": 5, "<unk>": 6}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.add_special_tokens(["</s>", "<unk>"])
    backend.add_tokens(["plain"])
    assert Tokenizer(backend).byte_lengths.tolist() == [0, 4, 1, 2, 1, 1, 0, 5]


def test_wide_vocabularies_take_four_bytes() -> None:
    vocabulary = {f"w{i}": i for i in range(70_000)} | {"</s>": 70_000}
    wide = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0")), "</s>")
    assert wide.dtype == np.uint32


def test_what_is_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no tokenizer"):
        load_tokenizer(tmp_path / "empty")
    for name in ("./nowhere", "/no/where", "missing/tokenizer.json"):
        with pytest.raises(UserError, match="does not exist"):
            load_tokenizer(name)
    monkeypatch.setattr("huggingface_hub.snapshot_download", _offline)
    with pytest.raises(UserError, match="not a local file or folder"):
        load_tokenizer("no-such/tokenizer-1.5b")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="no end-of-text token"):
        Tokenizer(backend)
    with pytest.raises(UserError, match="has no such token"):
        Tokenizer(backend, "<eos>")


def _offline(name: str, **kwargs) -> str:
    raise OSError(f"no network for {name}")


def _published(folder, bos_rule, **config):
    """A tokenizer folder as a publisher has it: a beginning and an end, and perhaps a rule that puts the first."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"<bos>": 0, "<eos>": 1, "x": 2, "i": 3}, merges=[]))
    backend.add_special_tokens(["<bos>", "<eos>"])
    if bos_rule:
        rule = tokenizers.processors.TemplateProcessing("<bos> $A", "<bos> $A $B", [("<bos>", 0)])
        backend.post_processor = rule
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", **config}))
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("rule", "config", "opening"),
    [
        (True, {}, (0,)),
        (False, {"bos_token": {"content": "<bos>"}, "add_bos_token": True}, (0,)),
        (False, {"bos_token": "<bos>"}, ()),
        (False, {"bos_token": "<bos>", "add_bos_token": False}, ()),
        (False, {}, ()),
    ],
    ids=["by rule", "turned on", "by name alone", "turned off", "none"],
)
def test_published_texts_open_as_the_publisher_says(tmp_path, rule, config, opening):
    tokenizer = _published(tmp_path, rule, **config)
    assert tokenizer.opening_ids == tokenizer.stop_ids == (1,), "as in our own training, until told otherwise"
    tokenizer.as_published([1, 3])
    assert (tokenizer.opening_ids, tokenizer.stop_ids) == (opening, (1, 3))
    assert tokenizer.encode("xi").tolist() == [2, 3]
