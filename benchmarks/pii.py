"""Recall and precision of the `pii` transform by kind and by language, on labelled places.

    python benchmarks/pii.py --rounds 8 --out pii.json

The places are in `data/pii_places.yaml`: sentences of twelve languages, log lines, code, URLs and mail headers with a
slot for each piece of personal data. Each round fills every slot with another value, drawn with a seed, so the exact
characters that a finder must report are known. A finding is right if it covers its slot to the character (a sign that
belongs to the value's frame, such as the parenthesis of an area code, may be in or out); any other finding is wrong.
"""

import argparse
import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lit_gpt.data.cleaning.pii import find_pii, iban_valid, luhn_valid

PLACES = Path(__file__).parent / "data" / "pii_places.yaml"
OPTION_OF_SLOT = {
    "email": "emails",
    "ip": "ip_addresses",
    "ip6": "ip_addresses",
    "phone": "phone_numbers",
    "national": "phone_numbers",
    "card": "credit_cards",
    "iban": "ibans",
    "secret": "secrets",
}
_SLOT = re.compile(r"\{(" + "|".join(OPTION_OF_SLOT) + r")\}")
_ALNUM = string.ascii_letters + string.digits


def _digits(rng: random.Random, count: int, alphabet: str = string.digits) -> str:
    return "".join(rng.choices(alphabet, k=count))


def _email(rng: random.Random) -> str:
    local = rng.choice(["ada", "zhang.wei", "grace_hopper", "j.o'neill", "info+news", "ivan-petrov", "x1", "k.müller"])
    host = rng.choice(["gmail.com", "163.com", "mail.uni-bonn.de", "yandex.ru", "acme.co.uk", "naver.com", "x.io"])
    return f"{local}{rng.choice(['', str(rng.randint(1, 99))])}@{host}"


def _ip(rng: random.Random) -> str:
    first = rng.choice([5, 31, 46, 62, 77, 93, 109, 142, 151, 176, 185, 212])
    return ".".join(map(str, [first, rng.randint(1, 254), rng.randint(1, 254), rng.randint(100, 254)]))


def _ip6(rng: random.Random) -> str:
    return rng.choice(["2607:f8b0:4005:805::200e", "2a00:1450:4001:831::200e", "2001:470:1f0b:9c1::2"])


def _phone(rng: random.Random) -> str:
    draw = lambda count: _digits(rng, count, "23456789")  # noqa: E731
    return rng.choice(
        [
            f"+44 20 {draw(4)} {draw(4)}",
            f"+49 (0)30 {draw(6)}",
            f"+86 138 {draw(4)} {draw(4)}",
            f"+33 6 {draw(2)} {draw(2)} {draw(2)} {draw(2)}",
            f"+1-{draw(3)}-{draw(3)}-{draw(4)}",
            f"+82-10-{draw(4)}-{draw(4)}",
            f"+66 81 {draw(3)} {draw(4)}",
            f"+7 912 {draw(3)}-{draw(2)}-{draw(2)}",
            f"+9665{draw(8)}",
        ]
    )


def _card(rng: random.Random) -> str:
    body = rng.choice(["4", "51", "55", "2221", "6011"])
    body += _digits(rng, 15 - len(body))
    number = next(body + check for check in string.digits if luhn_valid(body + check))
    sign = rng.choice(["", " ", "-"])
    return sign.join(number[start : start + 4] for start in range(0, 16, 4))


def _iban(rng: random.Random) -> str:
    country, length = rng.choice([("DE", 22), ("FR", 27), ("GB", 22), ("ES", 24), ("AT", 20)])
    account = ("WEST" if country == "GB" else "") + _digits(rng, length - 4 - 4 * (country == "GB"))
    iban = next(i for check in range(2, 99) if iban_valid(i := f"{country}{check:02}{account}"))
    return rng.choice([iban, " ".join(iban[start : start + 4] for start in range(0, len(iban), 4))])


def _secret(rng: random.Random) -> str:
    return rng.choice(
        [
            "ghp_" + _digits(rng, 36, _ALNUM),
            "AKIA" + _digits(rng, 16, string.ascii_uppercase + string.digits),
            "sk_live_" + _digits(rng, 24, _ALNUM),
            "hf_" + _digits(rng, 34, _ALNUM),
            "AIza" + _digits(rng, 35, _ALNUM),
        ]
    )


VALUES: dict[str, Callable[[random.Random], str]] = {
    "email": _email,
    "ip": _ip,
    "ip6": _ip6,
    "phone": _phone,
    "card": _card,
    "iban": _iban,
    "secret": _secret,
}


def make_places(rounds: int = 4, seed: int = 0) -> list[tuple[str, str, list[tuple[str, int, int]]]]:
    """Return labelled texts.

    Args:
        rounds: How often each place is filled, each time with other values.
        seed: Chooses the values.

    Returns:
        (group, text, [(option of `pii`, start, end)]) of each text; the group is a language code, or "logs", "code",
        "urls", "mail".
    """
    rng = random.Random(seed)
    data = yaml.safe_load(PLACES.read_text(encoding="utf-8"))
    found = []
    for group, content in (data["languages"] | data["technical"]).items():
        for template in content["places"] * rounds:
            text, at = "", 0
            labels: list[tuple[str, int, int]] = []
            for slot in _SLOT.finditer(template):
                value = rng.choice(content["numbers"]) if slot[1] == "national" else VALUES[slot[1]](rng)
                text += template[at : slot.start()]
                labels.append((OPTION_OF_SLOT[slot[1]], len(text), len(text) + len(value)))
                text += value
                at = slot.end()
            found.append((group, text + template[at:], labels))
    return found


def _same(text: str, label: tuple[int, int], finding: tuple[int, int]) -> bool:
    """Return whether two spans are the same but for signs at their ends, as the parenthesis of an area code."""
    return text[slice(*label)].strip("()+ ") == text[slice(*finding)].strip("()+ ") and (
        max(abs(label[0] - finding[0]), abs(label[1] - finding[1])) <= 1
    )


def measure(places: list[tuple[str, str, list[tuple[str, int, int]]]]) -> dict[str, Any]:
    """Return recall and precision by kind and by group, and what was missed or found wrongly.

    Args:
        places: From `make_places`.
    """
    counts: dict[str, Counter[str]] = {}
    missed: list[str] = []
    wrong: list[str] = []
    for group, text, labels in places:
        findings = find_pii(text)
        left = list(labels)
        for finding in findings:
            span = (finding.start, finding.end)
            label = next((lab for lab in left if lab[0] == finding.option and _same(text, lab[1:], span)), None)
            if label is not None:
                left.remove(label)
            else:
                wrong.append(f"{group}, {finding.option}: {text[finding.start : finding.end]!r} in {text!r}")
            for key in (finding.option, group):
                counts.setdefault(key, Counter())["right" if label is not None else "wrong"] += 1
        for option, start, end in left:
            missed.append(f"{group}, {option}: {text[start:end]!r} in {text!r}")
        for option, _, _ in labels:
            for key in (option, group):
                counts.setdefault(key, Counter())["places"] += 1
    scores = {
        key: {
            "places": count["places"],
            "recall": count["right"] / max(count["places"], 1),
            "precision": count["right"] / max(count["right"] + count["wrong"], 1),
        }
        for key, count in counts.items()
    }
    return {"scores": scores, "missed": missed, "wrong": wrong}


def main() -> None:
    """Print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="how often each place is filled with other values")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=20, help="missed and wrong ones that are shown")
    parser.add_argument("--out", help="JSON file for the results")
    options = parser.parse_args()
    places = make_places(options.rounds, options.seed)
    result = measure(places)
    print(f"{sum(len(labels) for _, _, labels in places)} places in {len(places)} texts\n")
    print(f"{'':<16}{'places':>8}{'recall':>9}{'precision':>11}")
    for key, score in result["scores"].items():
        print(f"{key:<16}{score['places']:>8}{score['recall']:>9.3f}{score['precision']:>11.3f}")
    for name in ("missed", "wrong"):
        for line in result[name][: options.show]:
            print(f"{name}: {line}")
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
