"""Near-duplicate search against datatrove's own MinHash, in one run: speed of each stage, memory, and what was found.

    python benchmarks/near_duplicates.py --num_documents 500 5000 --out results.json

Contenders, on the same documents, of which a fifth are copies with 2 % of the words changed:

- `lit_gpt`: `near_duplicates` with its defaults (FineWeb's 5-grams and 14 x 8 hashes);
- `datatrove`: its four MinHash blocks with their defaults (spaCy's English tokenizer);
- `datatrove, our words`: the same blocks with this project's word splitter, so that only MinHash differs.

Each runs in a process of its own, so that its peak memory is its own. The last table feeds both clustering stages the
pairs of many documents that never existed, and measures what Python and numpy allocate, per document of the corpus.
"""

import argparse
import json
import platform
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from pathlib import Path

import numpy as np

CONTENDERS = ("lit_gpt", "datatrove", "datatrove, our words")
NUM_SHARDS = 4
COPIES = 0.2


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Documents of 100 to 900 words from a skewed vocabulary; a fifth of them are changed copies of earlier ones."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("etaoinshrdlucmfwyp", k=rng.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (rank + 5) for rank in range(len(vocabulary))]
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < COPIES:
            words = [rng.choice(vocabulary) if rng.random() < 0.02 else word for word in rng.choice(texts).split(" ")]
        else:
            words = rng.choices(vocabulary, weights, k=rng.randint(100, 900))
        texts.append(" ".join(words))
    return texts


def write_documents(folder: Path, texts: list[str]) -> None:
    from datatrove.data import Document

    from lit_gpt.data.pipeline.document_shards import WriteDocuments

    size = -(-len(texts) // NUM_SHARDS)
    for rank in range(NUM_SHARDS):
        shard = [Document(text, f"{rank}-{i}") for i, text in enumerate(texts[rank * size : (rank + 1) * size])]
        deque(WriteDocuments(folder).run(shard, rank, NUM_SHARDS), maxlen=0)


def stages_of(contender: str, folder: Path, documents: Path):
    """Yields (name, datatrove steps, number of tasks)."""
    from lit_gpt.data.pipeline.document_shards import ReadDocuments

    if contender == "lit_gpt":
        from lit_gpt.data.cleaning.near_duplicates import NearDuplicates

        transform = NearDuplicates(ignore_numbers=True)  # as datatrove does
        for single in transform.passes(folder, ReadDocuments(documents), NUM_SHARDS):
            yield single.name, single.pipeline, single.num_tasks
        return
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature

    from lit_gpt.data.cleaning.words import word_tokenizer

    encode_for_xxhash_4()
    language = word_tokenizer("unicode") if "our words" in contender else "en"
    signatures, buckets, clusters = (str(folder / name) for name in ("signatures", "buckets", "clusters"))
    signature = MinhashDedupSignature(signatures, language=language)
    signature.word_tokenizer.word_tokenize("loads the tokenizer")
    yield "signatures", [ReadDocuments(documents), signature], NUM_SHARDS
    yield "buckets", [MinhashDedupBuckets(signatures, buckets)], 14
    yield "clusters", [MinhashDedupCluster(buckets, clusters)], 1


def encode_for_xxhash_4() -> None:
    """Lets datatrove 0.10.1, which hands str to xxhash, run with xxhash 4, which takes only bytes."""
    import xxhash
    from datatrove.utils.hashes import xxhash as of_datatrove

    of_datatrove.xxhash64 = lambda text: xxhash.xxh64_intdigest(text.encode())


def num_removed(contender: str, folder: Path) -> int:
    if contender == "lit_gpt":
        from lit_gpt.data.cleaning.duplicates import FINDING, DocumentTable, map_array

        starts = DocumentTable(folder / "ids").starts
        removed = 0
        for rank, path in enumerate(sorted((folder / "findings").glob("*.findings"))):
            findings = map_array(path, FINDING)
            removed += int((findings["kept"] != findings["place"] + starts[rank]).sum())
        return removed
    return sum(path.stat().st_size // 4 for path in (folder / "clusters").glob("*.remove"))


def run_contender(contender: str, folder: Path, documents: Path) -> dict:
    from datatrove.utils.logging import logger

    logger.remove()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = {}
    for name, pipeline, num_tasks in stages_of(contender, folder, documents):
        start = time.perf_counter()
        for rank in range(num_tasks):
            data = None
            for step in pipeline:
                data = step(data, rank, num_tasks)
            deque(data or (), maxlen=0)
        seconds[name] = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "peak_mb": after / 1024,
        "grown_mb": (after - before) / 1024,
        "disk_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "removed": num_removed(contender, folder),
    }


def clustering_memory(num_documents: int, folder: Path) -> dict:
    """Bytes that the stages after the signatures allocate at most, per document of a corpus with a fifth of copies."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupCluster
    from datatrove.utils.logging import logger

    from lit_gpt.data.cleaning.duplicates import write_bytes
    from lit_gpt.data.cleaning.near_duplicates import FindClusters, FindPairs, MinHash

    logger.remove()
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, (num_documents, 14), dtype=np.uint64)
    copies = rng.permutation(num_documents)[: int(COPIES * num_documents)]
    originals = rng.integers(0, num_documents, len(copies))
    keys[copies] = keys[originals]
    write_bytes(folder / "ids" / "00000.ids", b"")
    write_bytes(folder / "ids" / "00000.ends", np.zeros(num_documents, np.uint64).tobytes())
    write_bytes(folder / "keys" / "00000.keys", keys.tobytes())
    write_bytes(folder / "keys" / "00000.places", np.arange(num_documents).tobytes())
    del keys
    pairs = b"".join(struct.pack("<4I", 0, int(a), 0, int(b)) for a, b in zip(originals, copies, strict=True))
    for bucket in range(14):
        write_bytes(folder / "dups" / f"{bucket:05d}_00.dups", pairs)

    def peak(call) -> float:
        tracemalloc.start()
        call()
        bytes_used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_used / num_documents

    minhash = MinHash()
    result = {"lit_gpt buckets": peak(lambda: FindPairs(folder, minhash)(None, 0, 14))}
    for bucket in range(1, 14):
        FindPairs(folder, minhash)(None, bucket, 14)
    result["lit_gpt clusters"] = peak(lambda: FindClusters(folder)())
    cluster = MinhashDedupCluster(str(folder / "dups"), str(folder / "removed"))
    result["datatrove clusters"] = peak(lambda: deque(cluster.run(None, 0, 1) or (), maxlen=0))
    return result


def in_own_process(arguments: list[str]) -> dict:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_documents", type=int, nargs="+", default=[500, 5000])
    parser.add_argument(
        "--clustered", type=int, nargs="+", default=[20_000, 200_000], help="documents for the last table"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--clustering", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(run_contender(args.contender, args.folder / args.contender, args.folder / "documents")))
        return
    if args.clustering:
        print(json.dumps(clustering_memory(args.clustering, args.folder)))
        return
    report: dict = {"machine": platform.processor() or platform.machine(), "search": [], "clustering": []}
    widths = {"signatures": 39, "buckets": 9, "clusters": 9, "MB/s": 7, "grown MB": 10, "disk B/doc": 12, "removed": 9}
    print("".join(f"{name:>{width}}" for name, width in widths.items()))
    for count in args.num_documents:
        with tempfile.TemporaryDirectory() as name:
            texts = make_texts(count)
            megabytes = sum(map(len, texts)) / 1e6
            write_documents(Path(name) / "documents", texts)
            print(f"{count} documents, {megabytes:.1f} MB")
            for contender in CONTENDERS:
                figures = in_own_process(["--contender", contender, "--folder", name])
                s = figures["seconds"]
                rate = megabytes / sum(s.values())
                report["search"].append({"documents": count, "megabytes": megabytes, "contender": contender, **figures})
                print(
                    f"  {contender:<26}{s['signatures']:>10.2f}s{s['buckets']:>8.2f}s{s['clusters']:>8.2f}s{rate:>7.2f}"
                    f"{figures['grown_mb']:>10.0f}{figures['disk_bytes'] / count:>12.0f}{figures['removed']:>9}"
                )
    print("\nbytes allocated per document of the corpus, a fifth of them copies")
    for count in args.clustered:
        with tempfile.TemporaryDirectory() as name:
            figures = in_own_process(["--clustering", str(count), "--folder", name])
            report["clustering"].append({"documents": count, **figures})
            print(f"{count:>9} documents  " + "  ".join(f"{key} {value:.1f}" for key, value in figures.items()))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
