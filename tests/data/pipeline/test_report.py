import random
from itertools import pairwise

from lit_gpt.data.cleaning.base import Doc, Rejected
from lit_gpt.data.pipeline.report import MAX_CLUSTERS, MAX_EXAMPLES, Tally, TransformReport, excerpt, text_bytes


def made(documents: list[tuple[Doc, Rejected | None]]) -> TransformReport:
    report = TransformReport("step", 1)
    for document, why in documents:
        if why is None:
            report.keep(None, document.text, document.metadata, edited=False)
            report.represents_cluster(document)
        else:
            report.reject(document, why)
    return report


def random_documents(seed: int) -> list[tuple[Doc, Rejected | None]]:
    draw = random.Random(seed)
    documents: list[tuple[Doc, Rejected | None]] = []
    for cluster in range(40):
        size = draw.randint(2, 9)
        for member in range(size):
            metadata = {"source": draw.choice("ab"), "language": draw.choice(["en", "de"]), "license": "MIT"}
            document = Doc("é" * draw.randint(1, 900), f"{cluster}-{member}", metadata)
            if member == 0:
                document.cluster, document.cluster_size = str(cluster), size
                documents.append((document, None))
            else:
                documents.append((document, Rejected("near_duplicate", "", str(cluster), f"{cluster}-0", size)))
    draw.shuffle(documents)
    return documents


def test_reports_of_tasks_add_up_to_the_report_of_one_task():
    documents = random_documents(0)
    whole = made(documents)
    for cuts in ([50, 51, 120], [10], [1, 2, 3, 4, 5]):
        bounds = [0, *cuts, len(documents)]
        parts = [made(documents[a:b]) for a, b in pairwise(bounds)]
        random.Random(1).shuffle(parts)
        total = TransformReport("step", 1)
        for part in parts:
            total.merge(TransformReport.from_json(part.to_json()))
        assert total.to_json() == whole.to_json()


def test_a_report_is_bounded_and_its_numbers_are_right():
    documents = random_documents(2)
    report = made(documents).to_json()
    kept = [document for document, why in documents if why is None]
    dropped = [document for document, why in documents if why is not None]
    assert report["documents_in"] == len(documents)
    assert report["out"]["documents"] == report["num_clusters"] == len(kept) == 40
    assert report["bytes_in"] == sum(2 * len(document.text) for document, _ in documents)
    assert report["rejected"] == {"near_duplicate": [len(dropped), sum(2 * len(d.text) for d in dropped)]}
    assert len(report["examples"]["near_duplicate"]) == MAX_EXAMPLES
    assert len(report["clusters"]) == MAX_CLUSTERS
    largest = sorted((document.cluster_size for document in kept), reverse=True)[:MAX_CLUSTERS]
    assert [cluster["size"] for cluster in report["clusters"].values()] == largest
    assert all(cluster["members"][0]["kept"] for cluster in report["clusters"].values())
    assert sum(documents for documents, _ in report["out"]["groups"]["language"].values()) == 40


def test_lengths_are_binned_by_powers_of_two():
    tally = Tally()
    for length in (1, 2, 3, 4, 7, 8):
        tally.add("x" * length, {})
    assert tally.to_json()["lengths"] == {"1": 1, "2": 2, "3": 2, "4": 1}


def test_bytes_are_those_of_utf8():
    for text in ("", "abc", "é", "日本", "🙂a"):
        assert text_bytes(text) == len(text.encode())


def test_a_long_text_is_shown_by_its_beginning_and_end():
    shown = excerpt("begin " + "x" * 10_000 + " end")
    assert shown.startswith("begin")
    assert shown.endswith(" end")
    assert len(shown) < 420
