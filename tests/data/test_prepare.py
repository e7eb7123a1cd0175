import errno
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import preparing
import pytest
from small_texts import make_texts

from lit_gpt import atomic
from lit_gpt.data import prepare, shard_writer
from lit_gpt.data.corpus_spec import CorpusSpec, choose_split, document_hash, training_texts
from lit_gpt.data.prepare import prepare_corpus
from lit_gpt.data.records import FileRecords, IterableRecords
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.data.tokenizer_cache import prepare_tokenizer
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everything(root: Path) -> list[str]:
    """Files below a cache, but for the memory of hashes and the locks."""
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted(p.relative_to(root).as_posix() for p in files if p.suffix not in (".lock", ".jsonl"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The slow corpus of `preparing.py`, made without interruption."""
    return content(preparing.prepare(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("batch_bytes", [1, 300])
def test_bytes_do_not_depend_on_threads_or_batches(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, num_threads: int, batch_bytes: int
) -> None:
    monkeypatch.setattr(prepare, "_BATCH_BYTES", batch_bytes)
    assert content(preparing.prepare(tmp_path, num_threads=num_threads)) == whole
    names = [name for name in whole if name.endswith(".json")]
    assert sorted(names) == ["manifest.json", "sources.json"]  # no notes of progress stay behind


def start(root: Path) -> subprocess.Popen[str]:
    """Starts the preparation in another process and returns when it begins to work."""
    command = [sys.executable, "preparing.py", str(root), "0.01"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_a_shard(root: Path) -> None:
    while not list(root.rglob("shard-00000.json")):
        time.sleep(0.002)


def check_nothing_looks_whole(root: Path, whole: dict[str, bytes]) -> int:
    """Every shard under its final name is one of the whole corpus; returns how many are finished."""
    (folder,) = (root / "corpora").iterdir() if (root / "corpora").exists() else (None,)
    finished = 0
    if folder is not None and not (folder / "manifest.json").exists():
        for name, data in content(folder).items():
            if name.endswith(".bin") and atomic.TEMPORARY not in name:
                assert data == whole[name], name
            finished += "shard-" in name and atomic.TEMPORARY not in name
        with pytest.raises(UserError, match="not a prepared corpus"):
            TokenCorpus(folder)
    return finished


def test_killed_half_way_it_resumes_to_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(tmp_path)
    wait_for_a_shard(tmp_path)
    process.kill()
    process.communicate()
    finished = check_nothing_looks_whole(tmp_path, whole)
    assert finished > 0
    encoded = []
    original = Tokenizer.encode_batch
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda self, texts: encoded.extend(texts) or original(self, texts))
    assert content(preparing.prepare(tmp_path)) == whole
    assert 0 < len(encoded) < preparing.NUM_DOCUMENTS  # finished shards were not encoded again


@pytest.mark.slow
def test_killed_at_many_moments(tmp_path: Path, whole: dict[str, bytes]) -> None:
    rng = random.Random(0)
    for repetition in range(3):
        root = tmp_path / str(repetition)
        for _ in range(8):
            process = start(root)
            time.sleep(rng.uniform(0.0, 1.8))
            process.kill()
            process.communicate()
            check_nothing_looks_whole(root, whole)
        assert content(preparing.prepare(root)) == whole


def test_two_processes_at_once_make_one_corpus(tmp_path: Path, whole: dict[str, bytes]) -> None:
    first = start(tmp_path)
    wait_for_a_shard(tmp_path)
    first.send_signal(signal.SIGSTOP)
    second = start(tmp_path)
    assert second.stderr is not None
    assert "another process is preparing this corpus; waiting" in second.stderr.readline()
    first.send_signal(signal.SIGCONT)
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert outputs[0] == outputs[1]
    (folder,) = (tmp_path / "corpora").iterdir()
    assert content(folder) == whole


def test_a_prepared_corpus_is_found_again_and_a_damaged_one_made_anew(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = preparing.prepare(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_fill", lambda *args: pytest.fail("prepared twice"))
        assert preparing.prepare(tmp_path) == folder
    shard = folder / "train" / "tokens-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-4])
    capsys.readouterr()
    assert content(preparing.prepare(tmp_path)) == whole
    assert "is damaged" in capsys.readouterr().err


def spec_of(texts: list[str], **kwargs) -> CorpusSpec:
    return CorpusSpec([IterableRecords(lambda: texts, "texts")], **kwargs)


def test_documents_go_to_the_split_of_their_hash_or_their_source(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts, held_out = make_texts(80, seed=2), make_texts(5, seed=8)
    sources = [IterableRecords(lambda: texts, "texts"), IterableRecords(lambda: held_out, "held out", split="test")]
    corpus = TokenCorpus(prepare_corpus(CorpusSpec(sources, 0.2, 0.0), tokenizer, tmp_path))
    for name in ("train", "val"):
        expected = [text for text in texts if choose_split(document_hash(text), 0.2, 0.0) == name]
        split = corpus.split(name)  # type: ignore[arg-type]
        spans = [split.document(i) for i in range(split.num_documents)]
        assert [tokenizer.decode(split.read(s.start + 1, s.num_tokens)) for s in spans] == expected
    assert corpus.split("test").num_documents == 5


def test_empty_documents_are_left_out_and_bad_ones_named(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["one", "", "two \ud800", "three"]
    with pytest.raises(UserError, match="texts:3: the text contains a lone surrogate"):
        prepare_corpus(spec_of(texts), tokenizer, tmp_path)
    assert everything(tmp_path) == []
    corpus = TokenCorpus(prepare_corpus(spec_of(texts, on_bad_input="skip"), tokenizer, tmp_path))
    assert corpus.split("train").num_documents == 2
    assert (corpus.manifest["num_empty"], corpus.manifest["num_skipped"]) == (1, 1)
    assert "skipped 1 record that could not be read: texts:3" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"texts:3: .* lone surrogate"):  # the cache hides no fault
        prepare_corpus(spec_of(texts), tokenizer, tmp_path)


def test_bad_input_late_in_a_corpus_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    rows = ['{"text": "' + text + '"}\n' for text in make_texts(100)]
    path.write_text("".join(rows) + "no json\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"rows\.jsonl:101: the line is not JSON"):
        prepare_corpus(CorpusSpec([FileRecords(str(path))]), tokenizer, tmp_path / "cache", shard_tokens=300)
    assert everything(tmp_path / "cache") == []


def test_an_empty_corpus(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "empty.txt").touch()
    spec = CorpusSpec([FileRecords(str(tmp_path / "empty.txt"))])
    with pytest.raises(UserError, match=r"the corpus is empty: .*empty\.txt contain no text"):
        prepare_corpus(spec, tokenizer, tmp_path / "cache")
    with pytest.raises(UserError, match="the corpus is empty"):
        prepare_tokenizer(spec, tmp_path / "cache", 300)
    assert everything(tmp_path / "cache") == []
    (tmp_path / "rows.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    spec = CorpusSpec([FileRecords(str(tmp_path / "rows.jsonl"))], on_bad_input="skip")
    with pytest.raises(UserError, match=r"skipped 2 records .*rows\.jsonl:1: no field 'text'"):
        prepare_corpus(spec, tokenizer, tmp_path / "cache")
    with pytest.raises(UserError, match=r"skipped 2 records .*rows\.jsonl:1: no field 'text'"):
        prepare_tokenizer(spec, tmp_path / "cache", 300)
    with pytest.raises(UserError, match="no sources"):
        CorpusSpec([])


def test_no_room_is_seen_before_tokenising(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("word " * 5000)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *args: pytest.fail("tokenised"))
    with pytest.raises(UserError, match=r"needs about 25\.0 kB in .*, and 1\.0 kB are free; free some space"):
        prepare_corpus(CorpusSpec([FileRecords(str(path))]), tokenizer, tmp_path / "cache")
    assert everything(tmp_path / "cache") == []


@pytest.mark.parametrize("failing_write", [1, 40, 150])
def test_a_disk_that_fills_up_leaves_nothing_half_written(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, failing_write: int
) -> None:
    original = shard_writer._HashedFile.write
    writes = 0

    def write(self, array) -> None:
        nonlocal writes
        writes += 1
        if writes >= failing_write:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, array)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer._HashedFile, "write", write)
        with pytest.raises(UserError, match="is full; free some space"):
            preparing.prepare(tmp_path)
    left = everything(tmp_path)
    assert not any(atomic.TEMPORARY in name for name in left)
    assert all(whole[name.split("/", 2)[2]] for name in left if name.endswith(".bin"))
    assert not any(name.endswith("manifest.json") for name in left)
    assert content(preparing.prepare(tmp_path)) == whole


def test_the_tokenizer_sees_the_train_split_alone(tmp_path: Path) -> None:
    texts = make_texts(60)
    spec = spec_of(texts, val_fraction=0.3, test_fraction=0.2)
    train = [text for text in texts if choose_split(document_hash(text), 0.3, 0.2) == "train"]
    assert list(training_texts(spec, 10**9, None)) == train
    folder = prepare_tokenizer(spec, tmp_path, 300)
    assert load_tokenizer(folder).vocab_size == 300
    assert prepare_tokenizer(spec, tmp_path, 300) == folder
    assert prepare_tokenizer(spec_of(train), tmp_path, 300) != folder
    assert (
        load_tokenizer(prepare_tokenizer(spec_of(train), tmp_path, 300)).fingerprint
        == load_tokenizer(folder).fingerprint
    )


def test_a_large_corpus_gives_the_tokenizer_an_even_sample() -> None:
    texts = [f"text {i}" for i in range(4000)]
    size = sum(map(len, texts))
    sample = list(training_texts(spec_of(texts), size // 4, size))
    assert sum(map(len, sample)) == pytest.approx(size / 4, rel=0.1)
    places = [texts.index(text) for text in sample]
    assert sum(place > 2000 for place in places) == pytest.approx(len(places) / 2, rel=0.2)


def test_readers_hold_little_of_a_long_corpus(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """A generator is never far ahead of the writer."""
    ahead: list[int] = []
    produced = 0

    def documents() -> Iterator[str]:
        nonlocal produced
        for text in make_texts(2000):
            produced += 1
            yield text

    original = shard_writer.SplitWriter.add
    written = 0

    def add(self, *args) -> None:
        nonlocal written
        written += 1
        ahead.append(produced - written)
        original(self, *args)

    spec = CorpusSpec([IterableRecords(documents, "stream", version="1")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_BATCH_BYTES", 1000)
        patch.setattr(shard_writer.SplitWriter, "add", add)
        prepare_corpus(spec, tokenizer, tmp_path, num_threads=2)
    assert written == 2000
    assert max(ahead) < 60
