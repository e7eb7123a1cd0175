import json
from pathlib import Path

import pytest
import tokenizers
from small_texts import make_texts

from lit_gpt.cli import main
from lit_gpt.commands.tokenizer import measure, train
from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.tokenizer_measure import HOSTILE, count_words, encoding_speed, measure_tokenizer, table
from lit_gpt.data.tokenizer_sample import TokenizerSample, WeightedFiles
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_gpt.data.tokenizer_measure._TIMING_SECONDS", 0.01)


def test_every_number_by_hand() -> None:
    # Words are whole tokens, so that everything can be counted on one's fingers.
    vocabulary = {"</s>": 0, "a": 1, "bb": 2, "ccc": 3, "never": 4, "[UNK]": 5}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["</s>"])
    measured = measure_tokenizer("words", Tokenizer(backend), {"x": ["a bb", "ccc"], "y": ["bb bb bb", ""]})
    assert (measured.num_tokens, measured.num_bytes) == (6, 4 + 3 + 8)
    assert measured.bytes_per_token == 15 / 6
    assert measured.fertility == {"x": 1.0, "y": 1.0}
    assert measured.bytes_per_token_of == {"x": 7 / 3, "y": 8 / 3}
    assert measured.unused_share == 2 / 5  # `never` and `[UNK]`, of the five that are not special
    assert (measured.exact, measured.num_documents) == (4, 4)
    assert "emoji sequences" in measured.hostile_failures  # unknown words cannot come back
    assert encoding_speed(Tokenizer(backend), []) == 0.0


def test_words_of_scripts_without_spaces_count_by_the_character() -> None:
    assert count_words("The cat, don't") == 4
    assert count_words("我能吞下玻璃") == 6
    assert count_words("naïve Straße 12") == 3
    assert count_words("--- !!! ") == 0


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
@pytest.mark.parametrize("split_digits", [False, True])
def test_hostile_texts_come_back_exactly(pattern: str, split_digits: bool) -> None:
    trained = train_bpe(make_texts(100), 400, pattern, split_digits=split_digits)  # type: ignore[arg-type]
    for name, text in HOSTILE.items():
        ids = trained.encode(text)
        assert trained.decode(ids) == text, name
        assert trained.byte_lengths[ids].sum() == len(text.encode()), name
        assert trained.separator_id not in ids, name
    measured = measure_tokenizer("ours", trained, {"x": make_texts(5)})
    assert measured.hostile_failures == []
    assert (measured.exact, measured.hostile_exact) == (5, len(HOSTILE))


@pytest.mark.parametrize(
    "text", ["\ud800", "a\udfffb", "pair the wrong way round \udc00\ud800", "x" * 200_000 + "\udcff"]
)
def test_what_is_no_text_is_refused_with_its_place(text: str) -> None:
    trained = train_bpe(make_texts(20), 300)
    with pytest.raises(UserError, match=r"lone surrogate U\+D[89A-F][0-9A-F]{2} at character \d+"):
        trained.encode(text)


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_digits_can_be_split(pattern: str) -> None:
    text = "in 1999 1999 1999 and ٢٠٢٤ or x12 at ²³¼ 12,345 "
    split = train_bpe([text * 50], 330, pattern, split_digits=True)  # type: ignore[arg-type]
    pieces = [split.decode([i]) for i in split.encode("in 1999, x12")]
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == list("199912")
    assert split.decode(split.encode(text)) == text
    whole = train_bpe([text * 50], 330, pattern)  # type: ignore[arg-type]
    assert len(whole.encode("1999")) < 4


def test_the_table_puts_tokenizers_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, size in (("small", 280), ("large", 500)):
        train_bpe(make_texts(300), size).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("\n".join(make_texts(40, seed=1)))
    (tmp_path / "b.txt").write_text("漢字🙂 " * 30)
    words = [str(tmp_path / "small"), str(tmp_path / "large")]
    files = [f"mixed={tmp_path / 'a.txt'}", str(tmp_path / "b.txt")]
    measure(words, files)
    printed = capsys.readouterr()
    header, rule, *rows, legend = printed.out.splitlines()
    assert header.split("  ")[0] == "tokenizer"
    for column in ("entries", "bytes/token", " mixed", " b ", "unused", "MB/s", "hostile exact"):
        assert column in header
    assert set(rule) == {"-", " "}
    assert len(rows) == 2
    assert len({len(row) for row in [header, *rows]}) == 1
    assert legend == "by source: bytes per token | tokens per word"
    assert f"{len(HOSTILE)}/{len(HOSTILE)}" in rows[0]
    assert "2 documents" in printed.err
    measure(words, files, json=True)
    small, large = json.loads(capsys.readouterr().out)
    assert small["bytes_per_token"] < large["bytes_per_token"]
    assert small["vocab_size"] == 280
    assert f"{large['bytes_per_token']:.3f}" in rows[1]
    assert table([measure_tokenizer("x", load_tokenizer(words[0]), {"only": ["text"]})]).count("tokens/word") == 1
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("some text")
    measure(words[:1], [str(tmp_path / f"{number}.txt") for number in range(6)])
    assert "tokens/word" in capsys.readouterr().out.splitlines()[0], "six files without a name are one source"
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="no text"):
        measure(words, [str(tmp_path / "empty.txt")])


def test_a_sample_of_a_mixture_keeps_its_weights(tmp_path: Path) -> None:
    for name, count in (("web", 3000), ("code", 900)):
        lines = [json.dumps({"text": text}) for text in make_texts(count, seed=count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = [WeightedFiles(str(tmp_path / "web.jsonl"), 3.0), WeightedFiles(str(tmp_path / "code.jsonl"), 1.0)]
    for limit in (40_000, 10**9):  # the sample asked for, and one that the sources cannot fill
        sample = TokenizerSample(sources, limit)
        texts = list(sample)
        web, code = (source.taken_bytes for source in sample.sources)
        assert web / code == pytest.approx(3.0, rel=0.02)
        assert web + code == sum(len(text.encode()) for text in texts)
        assert list(sample) == texts
    whole = sum(len(text.encode()) for text in make_texts(900, seed=900))
    assert code == pytest.approx(whole, rel=0.02)  # all that the scarcest source has
    with pytest.raises(UserError, match="weight 0 of x must be above 0"):
        TokenizerSample([WeightedFiles("x", 0)], 100)


def test_train_from_a_mixture_with_chat_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        lines = "\n".join(json.dumps({"text": f"{name} {text}"}) for text in make_texts(200, seed=len(name)))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    mixture = [WeightedFiles(str(tmp_path / f"{name}.jsonl"), weight) for name, weight in (("a", 1.0), ("b", 2.0))]
    train(out=str(tmp_path / "tok"), vocab_size=300, mixture=mixture, chat_tokens="chatml", split_digits=True)
    told = capsys.readouterr().out
    assert "% of the sample" in told
    loaded = load_tokenizer(tmp_path / "tok")
    assert loaded.vocab_size == 300
    assert [loaded.backend.token_to_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert 1 not in loaded.encode("<|im_start|>user")  # a text cannot forge a turn
    given = "[" + ", ".join(f"{{files: {source.files}, weight: {source.weight}}}" for source in mixture) + "]"
    words = ["tokenizer", "train", "--mixture", given, "--out", str(tmp_path / "again"), "--vocab_size", "300"]
    assert main([*words, "--chat_tokens", "chatml", "--split_digits", "true"]) == 0
    assert load_tokenizer(tmp_path / "again").fingerprint == loaded.fingerprint
    for arguments in ({}, {"files": ["x"], "mixture": mixture}):
        with pytest.raises(UserError, match="either --files or --mixture"):
            train(out=str(tmp_path / "other"), **arguments)


def test_measure_leaves_out_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_bpe(make_texts(100), 300).save(tmp_path / "tok")
    (tmp_path / "a.jsonl").write_text('{"text": "a good text"}\nno json\n')
    words = ["tokenizer", "measure", "--tokenizers", str(tmp_path / "tok"), "--files", str(tmp_path / "a.jsonl")]
    assert main(words) == 2
    assert "on_bad_input: skip" in capsys.readouterr().err
    assert main([*words, "--on_bad_input", "skip"]) == 0
    assert "1/1" in capsys.readouterr().out
