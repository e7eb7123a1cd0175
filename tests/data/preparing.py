"""`python preparing.py <cache> <seconds a document>`: prepares a fixed corpus slowly, to be killed by tests."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from small_texts import make_texts

from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.corpus_spec import CorpusSpec
from lit_gpt.data.prepare import prepare_corpus
from lit_gpt.data.records import IterableRecords

NUM_DOCUMENTS = 150


def prepare(cache: Path, seconds: float = 0.0, num_threads: int = 2) -> Path:
    """Prepares the corpus and returns its folder."""
    tokenizer = train_bpe(make_texts(100, seed=99), 300)

    def documents() -> Iterator[str]:
        for text in make_texts(NUM_DOCUMENTS, seed=4):
            time.sleep(seconds)
            yield text

    spec = CorpusSpec([IterableRecords(documents, "slow", version="1")], val_fraction=0.1, test_fraction=0.1)
    return prepare_corpus(spec, tokenizer, cache, num_threads, shard_tokens=600)


if __name__ == "__main__":
    from lit_gpt.data import prepare as module

    module._BATCH_BYTES = 512
    print("ready", flush=True)
    print(prepare(Path(sys.argv[1]), float(sys.argv[2])))
