"""Killed at random moments, by signals that can be caught and one that cannot, and started again: the same bytes."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipeline_corpora import articles, digests, write_recipe

from lit_gpt.data.records.compression import open_bytes

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def start(path: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "lit_gpt", "prepare", "--config", str(path), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def whole_shards(out: Path) -> int:
    """Reads every shard to its end; a half one raises."""
    count = 0
    for path in out.rglob("*.zst"):
        if not path.name.startswith(".tmp-"):
            with open_bytes(path) as file:
                while file.read(1 << 20):
                    pass
            count += 1
    return count


def make_input(folder: Path) -> Path:
    folder.mkdir()
    texts = articles(120)
    draw = random.Random(5)
    for number in range(400):
        text = "\n\n".join(draw.sample(texts, 4)) if number % 7 else texts[number % len(texts)]
        (folder / f"{number:03}.txt").write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_ten_times(tmp_path, workers):
    settings = {
        "sources": [{"files": str(make_input(tmp_path / "texts"))}],
        "steps": ["fix_encoding", "normalize", "gopher_repetition", "exact_duplicates", "near_duplicates", "pii"],
        "tokenizer": {"vocab_size": 1000},
        "val_fraction": 0.1,
        "shard_megabytes": 0.05,
    }
    calm = tmp_path / "calm"
    calm.mkdir()
    began = time.monotonic()
    process = start(write_recipe(tmp_path / "calm.yaml", out=str(calm / "out"), **settings))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    seconds = time.monotonic() - began
    wanted = digests(calm / "out")

    stormy = tmp_path / "stormy"
    stormy.mkdir()
    out = stormy / "out"
    executor = {"kind": "local", "workers": 2} if workers == 2 else {"kind": "inline"}
    path = write_recipe(tmp_path / "stormy.yaml", out=str(out), executor=executor, **settings)
    draw = random.Random(workers)
    killed = in_the_work = 0
    moments = []
    for attempt in range(40):
        process = start(path)
        # Each start does a part of the work, so moments late in the whole are reached by later starts.
        moment = draw.uniform(0.3, 0.3 + 0.5 * seconds)
        try:
            output, _ = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            number = SIGNALS[attempt % len(SIGNALS)]
            process.send_signal(number)
            output, _ = process.communicate(timeout=60)
            if process.returncode == 0:  # it was just done
                continue
            killed += 1
            moments.append(f"{number.name} at {moment:.1f} s")
            whole_shards(out)
            if number != signal.SIGKILL:
                # Before the work begins, while Python imports, and after it ended, a signal has its usual effect.
                assert process.returncode in (130, 143, -number), output
                if process.returncode > 0:
                    in_the_work += 1
                    assert "Traceback" not in output
                    assert not list(out.rglob(".tmp-*"))
            if killed == 10:
                break
            continue
        assert process.returncode == 0, output
        assert digests(out) == wanted  # it came through: the next one begins anew
        shutil.rmtree(out)
    assert killed == 10
    assert in_the_work > 0
    process = start(path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    print(f"\n{workers} worker(s), {seconds:.1f} s uninterrupted, killed: {', '.join(moments)}")
    assert digests(out) == wanted
    assert whole_shards(out) > 10
    assert not (out / "work").exists()
