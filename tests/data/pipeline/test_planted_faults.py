"""A folder with faults that the test knows of: each is found, nothing else is; precision and recall are printed."""

import json
import random
import re
import string
from pathlib import Path

import pytest
from pipeline_corpora import articles, card, dropped_documents, kept_documents, prepare, write_recipe

BOILERPLATE = "This page is part of the Example Archive; visit our shop for the printed edition."
MANY_BUCKETS = {"num_buckets": 50, "hashes_per_bucket": 4}
"""5 % changed words leave a Jaccard similarity of 0.63 (0.95^5 / (2 - 0.95^5)) of 5-grams, below what FineWeb's 14
buckets of 8 hashes look for (they find 30 % of such pairs); 50 buckets of 4 find 99.98 %."""
GERMAN = [
    "Im März fährt die Straßenbahn über die Brücke, und viele schöne Häuser säumen die Ufer des Flusses.",
    "Der Bäcker öffnet früh; für fünf Brötchen und süße Hörnchen stehen die Schüler jeden Morgen Schlange.",
    "Größere Städte führen Bücher über Bäume, Gärten und Höfe, damit später niemand unnötig Wälder fällt.",
    "Während der Übung hörte man plötzlich Töne aus dem Süden, als würden Glöckchen im Nebel geläutet.",
    "Müde Läufer trinken am Brünnlein kühles Wasser, ehe sie über die Höhen zurück zu den Zügen müssen.",
]
LENGTH = {"min_chars": 20, "max_chars": 1_000_000}


def luhn_completed(digits: str) -> str:
    """Appends the check digit of ISO/IEC 7812-1."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)


def iban_of(country: str, account: str) -> str:
    """Puts in the check digits of ISO 13616 (mod 97)."""
    number = int("".join(str(int(c, 36)) for c in account + country + "00"))
    return f"{country}{98 - number % 97:02}{account}"


def planted_personal(draw: random.Random) -> list[tuple[str, str]]:
    """(kind, text) of things that must go."""
    found = []
    for _ in range(12):
        name = "".join(draw.choices(string.ascii_lowercase, k=8))
        found.append(("email", f"{name}@{draw.choice(['mail', 'post'])}.example.org"))
        found.append(("ip_address", f"81.{draw.randint(2, 250)}.{draw.randint(2, 250)}.{draw.randint(2, 250)}"))
        found.append(("credit_card", luhn_completed("4" + "".join(draw.choices(string.digits, k=14)))))
        found.append(("iban", iban_of("DE", "".join(draw.choices(string.digits, k=18)))))
        found.append(("phone_number", f"+1 {draw.randint(201, 989)}-555-{draw.randint(1000, 9999)}"))
        key = "".join(draw.choices(string.ascii_uppercase + "234567", k=16))
        found.append(("secret", f"AKIA{key}"))
    body = "\n".join("".join(draw.choices(string.ascii_letters + string.digits, k=64)) for _ in range(4))
    found.append(("secret", f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"))
    return found


def decoys(draw: random.Random) -> list[str]:
    """Things that look like personal data and are none."""
    wrong = luhn_completed("4" + "".join(draw.choices(string.digits, k=14)))
    wrong = wrong[:-1] + str((int(wrong[-1]) + 1) % 10)
    iban = iban_of("DE", "".join(draw.choices(string.digits, k=18)))
    iban = iban[:3] + str((int(iban[3]) + 1) % 10) + iban[4:]
    return [wrong, iban, "192.168.0.1", "version 3.11.7", "the decorator @property", "2024-05-17"]


def with_changed_words(text: str, share: float, draw: random.Random) -> str:
    words = text.split(" ")
    for place in draw.sample(range(len(words)), round(share * len(words))):
        words[place] = "".join(draw.choices(string.ascii_lowercase, k=6))
    return " ".join(words)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> dict:
    draw = random.Random(7)
    folder = tmp_path_factory.mktemp("planted")
    texts = folder / "texts"
    texts.mkdir()
    clean = articles(140)
    faults: dict[str, set[str]] = {}

    def write(name: str, text: str, encoding: str = "utf-8") -> str:
        (texts / name).write_bytes(f"{text}\n{BOILERPLATE}\n".encode(encoding))
        return f"texts/texts/{name}"

    expected = {write(f"a-clean-{n:03}.txt", text): text for n, text in enumerate(clean)}
    faults["exact copy"] = {write(f"c-copy-{n}.txt", clean[n]) for n in range(12)}
    faults["near copy"] = {write(f"d-near-{n}.txt", with_changed_words(clean[20 + n], 0.05, draw)) for n in range(12)}
    personal = planted_personal(draw)
    spare = articles(180)[140:]
    hosts = spare[:10]
    for number, host in enumerate(hosts):
        mine = personal[number :: len(hosts)]
        text = host + "".join(f"\nContact {number}: {thing} was written here." for _, thing in mine)
        text += f"\nNo fault: {decoys(random.Random(number))[number % 6]} stands here."
        write(f"e-personal-{number}.txt", text)
    questions = [
        f"If a farmer has {n + 2} baskets with {n * 3 + 5} apples in each of them, and sells {n + 4} apples at the market "
        f"on every day of the week but Sunday, how many apples are left in the baskets after {n + 1} weeks?"
        for n in range(20)
    ]
    (folder / "benchmark.jsonl").write_text(
        "".join(json.dumps({"question": q, "answer": "7"}) + "\n" for q in questions)
    )
    faults["benchmark question"] = {
        write(f"f-bench-{n}.txt", f"{spare[10 + n]}\n{questions[n].upper() if n % 2 else questions[n]}")
        for n in range(8)
    }
    encoded = {}
    for number, encoding in enumerate(["cp1252", "utf-16", "cp1252", "utf-16", "utf-8-sig"]):
        text = GERMAN[number]
        encoded[write(f"g-encoded-{number}.txt", text, encoding)] = text
    for number in range(6):
        host = spare[20 + number].replace("”", '"')  # its bytes are not all in cp1252
        text = f"{host} It’s a “Café crème, said the naïve waiter number {number} – and so it was…"
        broken = text.encode().decode("cp1252")
        encoded[write(f"h-mojibake-{number}.txt", broken)] = text
    (texts / "i-line.txt").write_text("one endless line of words without a break " * (50_000_000 // 42))
    faults["50 MB line"] = {f"texts/texts/i-line.txt:{n}" for n in range(1, 4)}  # pieces of 16 MB
    for number in range(5):
        (texts / f"j-empty-{number}.txt").write_text("" if number < 3 else " \n\n ")
    faults["empty file"] = {f"texts/texts/j-empty-{n}.txt" for n in range(5)}

    path = write_recipe(
        folder / "r.yaml",
        out=str(folder / "out"),
        sources=[{"files": str(texts), "encoding": "detect"}],
        steps=[
            {"length": LENGTH},
            "fix_encoding",
            "normalize",
            "duplicate_lines",
            "exact_duplicates",
            {"near_duplicates": MANY_BUCKETS},
            {"decontaminate": {"benchmarks": [str(folder / "benchmark.jsonl")]}},
            "pii",
        ],
        tokenizer={"vocab_size": 500},
        keep_rejected=True,
    )
    assert prepare(path) == 0
    return {
        "out": folder / "out",
        "folder": folder,
        "clean": expected,
        "faults": faults,
        "encoded": encoded,
        "personal": personal,
    }


def scores(found: set[str], planted: set[str]) -> tuple[float, float]:
    right = len(found & planted)
    return (right / len(found) if found else 1.0), right / len(planted)


@pytest.mark.slow
def test_every_planted_fault_is_found_and_nothing_else(planted):
    out = planted["out"]
    by_step = {
        "exact copy": "exact_duplicates",
        "near copy": "near_duplicates",
        "benchmark question": "decontaminate",
        "50 MB line": "length",
        "empty file": "read",
    }
    print(f"\n{'fault':<22}{'planted':>8}{'found':>7}{'precision':>11}{'recall':>8}")
    for fault, step in by_step.items():
        found = {line["id"] for line in dropped_documents(out, step)}
        precision, recall = scores(found, planted["faults"][fault])
        print(f"{fault:<22}{len(planted['faults'][fault]):>8}{len(found):>7}{precision:>11.3f}{recall:>8.3f}")
        assert (precision, recall) == (1.0, 1.0), fault
    kept = {document["id"]: document["text"] for document in kept_documents(out)}
    everything = "\n".join(kept.values())

    with_boilerplate = [name for name, text in kept.items() if BOILERPLATE in text]
    print(f"{'boilerplate line':<22}{len(kept):>8}{len(kept) - len(with_boilerplate):>7}{1:>11.3f}{1:>8.3f}")
    assert not with_boilerplate

    counts = {step["name"]: step["counts"] for step in card(out)["steps"]}["pii"]
    for kind in sorted({kind for kind, _ in planted["personal"]}):
        things = [thing for k, thing in planted["personal"] if k == kind]
        gone = [thing for thing in things if thing not in everything]
        precision, recall = len(gone) / max(counts.get(kind, 0), 1), len(gone) / len(things)
        print(f"{kind:<22}{len(things):>8}{counts.get(kind, 0):>7}{precision:>11.3f}{recall:>8.3f}")
        assert (precision, recall) == (1.0, 1.0), kind
    for number in range(10):
        assert decoys(random.Random(number))[number % 6] in everything

    right = [name for name, text in planted["encoded"].items() if text.strip() in kept.get(name, "")]
    print(f"{'wrong encoding':<22}{len(planted['encoded']):>8}{len(right):>7}{1:>11.3f}{len(right) / 11:>8.3f}")
    assert len(right) == len(planted["encoded"])

    lost = [name for name, text in planted["clean"].items() if kept.get(name, "").strip() != text.strip()]
    print(f"{'clean documents':<22}{len(planted['clean']):>8}, of which lost or changed: {len(lost)}")
    assert not lost


@pytest.mark.slow
def test_what_matched_a_benchmark_is_listed(planted):
    for line in dropped_documents(planted["out"], "decontaminate"):
        assert "benchmark.jsonl" in line["detail"]
        assert re.search(r"baskets", line["detail"], re.IGNORECASE)
    page = (planted["out"] / "card.html").read_text()
    assert "benchmark.jsonl" in page


@pytest.mark.slow
def test_what_finewebs_parameters_find_of_the_near_copies(planted, tmp_path):
    path = write_recipe(
        tmp_path / "r.yaml",
        out=str(tmp_path / "out"),
        sources=[{"files": f"{planted['folder']}/texts/[a-d]-*.txt"}],
        steps=["duplicate_lines", "exact_duplicates", "near_duplicates"],
        tokenizer=None,
    )
    assert prepare(path) == 0
    found = {Path(line["id"]).name for line in dropped_documents(tmp_path / "out", "near_duplicates")}
    near = {Path(name).name for name in planted["faults"]["near copy"]}
    print(f"\n14 buckets of 8 hashes find {len(found & near)} of {len(near)} copies with 5 % of the words changed")
    assert found <= near
