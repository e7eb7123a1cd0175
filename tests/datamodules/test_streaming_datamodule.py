import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from recording import stock_trainer
from streamed import Recorder, make_stream, stream, texts

from lit_gpt.data.records import BadInput, HubDataset, read_records
from lit_gpt.data.records.remote import RemoteRecords, list_remote
from lit_gpt.data.streaming.documents import DocumentStream
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.errors import UserError

T, G, B = 16, 8, 20


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read ahead in steps that suit so small a corpus."""
    monkeypatch.setattr("lit_gpt.data.streaming.tokens._BATCH_CHARACTERS", 1 << 12)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_stream(tmp_path)
    return tmp_path


def ready(data):
    data.prepare_data()
    data.setup("fit")
    return data


def rows(loader, count: int) -> list[list[list[int]]]:
    endless = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return [[row for micro in step for row in micro["input_ids"].tolist()] for step in itertools.islice(endless, count)]


def naive_tokens(data, folder: Path, count: int) -> list[int]:
    """The stream's tokens, from all of it in memory: shards in their order, pass after pass, what is held out left out."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    held_out = texts()[0::3][:11]  # the first documents of the first shard
    tokens: list[int] = []
    for epoch in itertools.count():
        for document, _ in data.stream().documents(epoch, None, BadInput()):
            if document.text not in held_out:
                tokens += [tokenizer.separator_id, *tokenizer.encode(document.text).tolist()]
        if len(tokens) > count:
            return tokens[:count]
    raise AssertionError


def test_blocks_hold_the_stream_and_windows_are_permuted_within_them(root: Path) -> None:
    data = ready(stream(root))
    steps = rows(data.train_dataloader(), 40)
    tokens = naive_tokens(data, root, 40 * G * T)
    windows = [tokens[i : i + T] for i in range(0, len(tokens), T)]
    seen = list(itertools.chain.from_iterable(steps))
    for begin in range(0, len(seen), B):
        assert sorted(seen[begin : begin + B]) == sorted(windows[begin : begin + B])
    assert seen != windows
    micro = next(iter(ready(stream(root)).train_dataloader()))[0]
    assert (micro["labels"][:, :-1] == micro["input_ids"][:, 1:]).all()
    orders = [
        [document.source for document, _ in data.stream().documents(epoch, None, BadInput())] for epoch in range(4)
    ]
    assert len({tuple(order) for order in orders}) > 1
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact_elastic_and_needs_no_cache(root: Path, num_workers: int) -> None:
    expected = rows(ready(stream(root)).train_dataloader(), 26)
    state, seen = None, []
    for number, (ranks, count) in enumerate([(1, 7), (2, 9), (1, 10)]):
        shares = []
        for rank in range(ranks):
            data = stream(root, f"fresh-{number}", micro_batch_size=2, num_workers=num_workers)
            data._ranks = lambda rank=rank, ranks=ranks: {"rank": rank, "world_size": ranks}
            loader = ready(data).train_dataloader()
            if state is not None:
                loader.load_state_dict(state)
            shares.append(rows(loader, count))
        seen += [list(itertools.chain.from_iterable(parts)) for parts in zip(*shares, strict=True)]
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        assert (state["block"], state["offset"]) == divmod(len(seen) * G, B)
        assert state["cursor_block"] == state["block"]
    assert seen == expected
    # Only the blocks from the checkpoint's on were read.
    made = sorted(int(path.stem.split("-")[1]) for path in (root / "fresh-2").rglob("block-*.bin"))
    assert made[0] == 16 * G // B


def test_the_disk_holds_the_latest_blocks(root: Path) -> None:
    data = ready(stream(root, cache_gigabytes=3.5 * B * T * 2 / 1e9))
    data.order.store.prefetch = False
    loader = data.train_dataloader()
    rows(loader, 30)
    blocks = sorted(path.name for path in (root / "cache" / "streams").rglob("block-*.bin"))
    assert blocks == [f"block-{number:08}.bin" for number in (9, 10, 11)]
    again = ready(stream(root)).train_dataloader()
    assert rows(again, 3) == rows(ready(stream(root, "other")).train_dataloader(), 3)  # a deleted block is made again


def test_fsspec_shards_are_those_of_the_disk(root: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in sorted((root / "shards").iterdir()):
        memory.pipe_file(f"/{root.name}/shards/{path.name}", path.read_bytes())
    here = ready(stream(root))
    there = ready(stream(root, "there", files=f"memory://{root.name}/shards/*.jsonl*"))
    assert rows(there.train_dataloader(), 30) == rows(here.train_dataloader(), 30)
    there.order.store._thread.join()
    copies = [p for p in (root / "there" / "streams" / "shards").iterdir() if p.suffix != ".lock"]
    assert len(copies) <= 1  # a shard is deleted when it has been read
    source = here.provenance(next(iter(here.train_dataloader()))[0])[0][0].source
    assert source.startswith(str(root))


@pytest.mark.parametrize("form", ["disk", "memory", "dataset"])
def test_a_shard_that_changes_without_changing_its_size_is_another(root: Path, form: str) -> None:
    memory = fsspec.filesystem("memory")
    path = root / "shards" / "0.jsonl"
    original = path.read_bytes()

    def write(content: bytes) -> None:
        path.write_bytes(content)
        memory.pipe_file(f"/{root.name}/changing/0.jsonl", content)

    def data(cache: str):
        if form == "dataset":
            return ready(
                stream(root, cache, dataset=HubDataset("json", data_files=str(root / "shards" / "[0-2].jsonl")))
            )
        url = str(root / "shards") if form == "disk" else f"memory://{root.name}/changing/*.jsonl"
        return ready(stream(root, cache, files=url))

    write(original)
    loader = data("cache").train_dataloader()
    before = rows(loader, 3)
    write(original.replace(b'"text ', b'"next '))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # also where the clock of the file system is coarse
    assert rows(data("cache").train_dataloader(), 3) == rows(data("fresh").train_dataloader(), 3) != before
    with pytest.raises(UserError, match=r"trained with stream .* changed \(name, size, date or checksum\)"):
        data("cache").train_dataloader().load_state_dict(loader.state_dict())


def test_a_server_that_says_no_version_is_warned_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe_file(f"/{root.name}/plain.txt", b"text")
    monkeypatch.setattr("lit_gpt.data.records.remote._VERSIONS", ())
    with pytest.warns(UserWarning, match=r"1 shards of .* no checksum, ETag or date, such as memory://.*plain\.txt"):
        assert list_remote(f"memory://{root.name}/plain.txt")[0].version == ""


def test_two_streams_share_the_copies_in_a_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.pipe_file(f"/{root.name}/shared/{number}.txt", f"text {number}".encode())

    def read() -> set[str]:
        files = RemoteRecords(f"memory://{root.name}/shared/*.txt", root / "copies")
        return {document.text for document, _ in DocumentStream(files).documents(0, None, BadInput())}

    def copies() -> list[Path]:
        return [path for path in (root / "copies" / "shards").iterdir() if path.suffix != ".lock"]

    def read_after_another(path: Path, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr("lit_gpt.data.records.source.read_records", read_records)
            assert read() == {"text 0", "text 1"}  # all of it, just before the first opens its copy
        assert path in copies()
        return read_records(path, *arguments)

    monkeypatch.setattr("lit_gpt.data.records.source.read_records", read_after_another)
    assert read() == {"text 0", "text 1"}
    assert not copies()  # the last one to read a copy deletes it


def test_blocks_are_found_in_any_order(root: Path) -> None:
    store = ready(stream(root, cache_gigabytes=0)).order.store
    first = [store.tokens(block).copy() for block in range(5)]
    for block in (4, 0, 3, 1, 2, 0):
        assert (store.tokens(block) == first[block]).all()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_hugging_face_streaming(root: Path, form: str) -> None:
    files = []
    for shard in range(3):
        table = texts()[shard::3]
        files.append(str(root / f"hub-{shard}.{form}"))
        if form == "jsonl":
            Path(files[-1]).write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in table))
        else:
            table = pyarrow.table({"text": table, "n": [1] * len(table)})
            pyarrow.parquet.write_table(table, files[-1], row_group_size=7)
    spec = HubDataset({"jsonl": "json"}.get(form, form), data_files=files)
    data = ready(stream(root, dataset=spec))
    loader = data.train_dataloader()
    expected = rows(loader, 15)
    seen = list(itertools.chain.from_iterable(expected))
    tokens = naive_tokens(data, root, 15 * G * T)
    windows = [tokens[i : i + T] for i in range(0, len(tokens), T)]
    for begin in range(0, len(seen), B):
        assert sorted(seen[begin : begin + B]) == sorted(windows[begin : begin + B])
    state = None
    for cut in (3, 7, 15):
        resumed = ready(stream(root, f"cut-{cut}", dataset=spec)).train_dataloader()
        if state is not None:
            resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        done = 0 if state is None else state["position"] // G
        assert rows(resumed, cut - done) == expected[done:cut]
        state = resumed.state_dict()


def test_held_out_documents_are_not_trained_on(root: Path) -> None:
    data = ready(stream(root))
    tokenizer = load_tokenizer(root / "tokenizer")
    assert data.corpus.split("val").num_documents == 7
    assert data.corpus.split("test").num_documents == 4
    assert sum(int(b["num_bytes"].sum()) for b in data.val_dataloader()) == data.corpus.split("val").num_bytes
    loader = ready(stream(root, block_windows=160)).train_dataloader()
    trained = tokenizer.decode(np.concatenate([loader.steps.order.store.tokens(block)[:-1] for block in range(6)]))
    for number, text in enumerate(texts()):
        assert (text.split(" ", 2)[2] in trained) == (number % 3 > 0 or number // 3 >= 11)
    without = ready(stream(root, val_documents=0, test_documents=0))
    assert without.val_dataloader() == []
    assert len(rows(without.train_dataloader(), 2)) == 2
    json.dumps([without.lineage(), data.lineage()])


def test_any_window_is_traced_to_its_documents(root: Path) -> None:
    data = ready(stream(root))
    tokenizer = load_tokenizer(root / "tokenizer")
    lines = {str(path): path for path in (root / "shards").iterdir()}
    for step in itertools.islice(iter(data.train_dataloader()), 6):
        found = data.provenance(step[0])
        for row, labels, pieces in zip(step[0]["input_ids"].tolist(), step[0]["labels"].tolist(), found, strict=True):
            window = [*row, labels[-1]]
            assert [pieces[0].begin, pieces[-1].end] == [0, T + 1]
            for piece in pieces:
                shard = int(lines[piece.source].name[0])
                text = texts()[shard::3][piece.record - 1]
                whole = [tokenizer.separator_id, *tokenizer.encode(text).tolist()]
                assert len(whole) == piece.num_tokens
                assert window[piece.begin : piece.end] == whole[piece.offset :][: piece.end - piece.begin]


def test_a_stock_trainer_resumes_exactly(root: Path) -> None:
    def fit(max_steps: int, **kwargs) -> list:
        module = Recorder()
        trainer = stock_trainer(root, max_steps)
        trainer.fit(module, stream(root, f"run-{max_steps}"), weights_only=True, **kwargs)
        trainer.save_checkpoint(root / "last.ckpt")
        return module.seen

    assert fit(7) + fit(11, ckpt_path=root / "last.ckpt") == fit(11)


def test_memory_is_that_of_a_block_and_not_of_the_stream(root: Path) -> None:
    data = ready(stream(root, block_windows=64))
    read = []

    class Counted:
        name = "counted"

        def documents(self, epoch, place, bad_input):
            for document, here in data.stream().documents(epoch, place, bad_input):
                read.append(len(document.text))
                yield document, here

    from lit_gpt.data.streaming.tokens import Cursor, TokenReader

    reader = TokenReader(Counted(), data._tokenizer, Cursor(), BadInput(), num_threads=1)
    reader.read(400_000)
    # Characters read are at most those used and three batches ahead.
    assert sum(read) < 400_000 * 4 + 4 * (1 << 18)
    reader.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"files": None}, "either files .* or a dataset"),
        ({"tokenizer": None}, "needs a tokenizer before it can read"),
        ({"block_windows": 0}, "block_windows is 0; it must be at least 1"),
        ({"on_bad_input": "ignore"}, "it can be error or skip"),
        ({"files": "memory://nothing-here/*.jsonl"}, "no file matches memory://nothing-here"),
        ({"files": "nosuch://bucket/a"}, "nosuch"),
        ({"files": "/no/such/folder/x.jsonl"}, "cannot be listed"),
        ({"text_field": "body"}, "no field 'body'"),
        ({"val_documents": 90, "test_documents": 0}, "has no text to train on"),
    ],
)
def test_impossible_streams(root: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(iter(ready(stream(root, **arguments)).train_dataloader()))


def test_another_stream_or_seed_is_refused(root: Path) -> None:
    loader = ready(stream(root)).train_dataloader()
    rows(loader, 5)
    state = loader.state_dict()
    with pytest.raises(UserError, match="trained with seed 3, this run has 4"):
        ready(stream(root, seed=4, files=str(root / "shards" / "0.jsonl"))).train_dataloader().load_state_dict(
            state | {"stream": ready(stream(root, seed=4, files=str(root / "shards" / "0.jsonl"))).fingerprint}
        )
    (root / "shards" / "3.jsonl").write_text('{"text": "more"}\n')
    with pytest.raises(UserError, match="trained with stream"):
        ready(stream(root)).train_dataloader().load_state_dict(state)


@pytest.mark.slow
def test_one_two_one_processes_consume_the_same_samples(root: Path) -> None:
    def run(devices: int, last_step: int, *checkpoint: str) -> list:
        command = [sys.executable, "streamed.py", str(root), str(devices), str(last_step), *checkpoint]
        subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, timeout=180)
        ranks = [json.loads((root / f"streamed-{last_step}-{r}.json").read_text()) for r in range(devices)]
        return [[row for share in shares for row in share] for shares in zip(*ranks, strict=True)]

    whole = run(1, 30)
    seen = run(1, 8) + run(2, 21, str(root / "step-8.ckpt")) + run(1, 29, str(root / "step-21.ckpt"))
    assert seen == whole[:29]
    assert np.array(seen).shape == (29, G, T)


@pytest.mark.slow
def test_the_memory_of_the_process_is_flat(tmp_path: Path) -> None:
    def run(megabytes: int) -> dict[str, int]:
        command = [sys.executable, "streamed_memory.py", str(tmp_path / str(megabytes)), str(megabytes)]
        done = subprocess.run(
            command, cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE, text=True, timeout=300
        )
        return json.loads(done.stdout)

    short, long = run(4), run(40)
    print(f"peak memory: 4 MB {short['peak'] / 1e6:.0f} MB, 40 MB {long['peak'] / 1e6:.0f} MB")
    assert long["tokens"] > 9 * short["tokens"] > 9e6
    # To hold the tokens alone would take 2 bytes for each.
    assert long["peak"] - short["peak"] < 0.5 * 2 * (long["tokens"] - short["tokens"])
