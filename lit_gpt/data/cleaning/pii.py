"""`pii`: personal data and secrets are replaced by a tag, or their documents are dropped; counted by kind.

Tags in place of invented values follow StarCoder (Li et al. 2023, arXiv:2305.06161, section 4): `<EMAIL>`, `<KEY>`.
What is found is in `pii_network.py`, `pii_phones.py`, `pii_payment.py` and `secret_patterns.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from lit_gpt.data.cleaning.base import PerDocumentStep, check_choice
from lit_gpt.data.cleaning.pii_network import find_emails, find_ip_addresses
from lit_gpt.data.cleaning.pii_payment import find_credit_cards, find_ibans
from lit_gpt.data.cleaning.pii_phones import find_phone_numbers
from lit_gpt.data.cleaning.secret_patterns import find_secrets
from lit_gpt.data.cleaning.step import Doc, Rejected
from lit_gpt.errors import UserError

Action = Literal["replace", "drop", "keep"]
ACTIONS = ("replace", "drop", "keep")


class Kind(NamedTuple):
    """One kind of personal data.

    Attributes:
        name: What it is counted as: "email".
        tag: What it is replaced by.
        find: Yields its (start, end) pairs in a text.
    """

    name: str
    tag: str
    find: Callable[[str], Iterator[tuple[int, int]]]


# In this order where two overlap: the first one wins.
KINDS: dict[str, Kind] = {
    "secrets": Kind("secret", "<SECRET>", find_secrets),
    "emails": Kind("email", "<EMAIL>", find_emails),
    "ibans": Kind("iban", "<IBAN>", find_ibans),
    "credit_cards": Kind("credit_card", "<CREDIT_CARD>", find_credit_cards),
    "ip_addresses": Kind("ip_address", "<IP_ADDRESS>", find_ip_addresses),
    "phone_numbers": Kind("phone_number", "<PHONE_NUMBER>", find_phone_numbers),
}


class Finding(NamedTuple):
    """One piece of personal data in a text: characters `start` to `end`, and the option that it falls under."""

    start: int
    end: int
    option: str


def find_pii(text: str, options: Sequence[str] = tuple(KINDS)) -> list[Finding]:
    """Returns the personal data of a text in order, without overlaps.

    Args:
        text: Any text.
        options: What to look for, of `KINDS`.

    Example:
        >>> [finding.option for finding in find_pii("Write to ada@lovelace.org or call +44 20 7946 0958.")]
        ['emails', 'phone_numbers']
    """
    rank = {option: place for place, option in enumerate(KINDS)}
    found = [
        Finding(start, end, option) for option in KINDS if option in options for start, end in KINDS[option].find(text)
    ]
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda f: (f.start, rank[f.option], -f.end)):
        if kept and finding.start < kept[-1].end:
            if rank[finding.option] < rank[kept[-1].option]:
                kept[-1] = finding
            continue
        kept.append(finding)
    return kept


class PII(PerDocumentStep):
    """Replaces personal data and secrets by tags, or drops their documents.

    Each option is `replace`, `drop` (the document) or `keep`. Counts what was replaced by kind: `email`, `ip_address`,
    `phone_number`, `credit_card`, `iban`, `secret`.

    Args:
        emails: Email addresses.
        ip_addresses: Public IPv4 and IPv6 addresses; private ones stay.
        phone_numbers: International, North American, and national ones after a word such as "Tel.".
        credit_cards: Payment card numbers with a valid check digit (Luhn).
        ibans: Bank accounts with valid check digits (mod 97).
        secrets: Private keys, keys and tokens of common services.
    """

    name = "pii"
    replaces_personal_data = True
    """The data card reports what it counts as personal data."""

    def __init__(
        self,
        emails: Action = "replace",
        ip_addresses: Action = "replace",
        phone_numbers: Action = "replace",
        credit_cards: Action = "replace",
        ibans: Action = "replace",
        secrets: Action = "replace",
    ) -> None:
        super().__init__()
        self.actions: dict[str, Action] = {
            "emails": emails,
            "ip_addresses": ip_addresses,
            "phone_numbers": phone_numbers,
            "credit_cards": credit_cards,
            "ibans": ibans,
            "secrets": secrets,
        }
        for option, action in self.actions.items():
            check_choice(f"pii: {option}", action, ACTIONS)
        self.wanted = [option for option, action in self.actions.items() if action != "keep"]
        if not self.wanted:
            raise UserError("pii keeps every kind; set one to replace or drop, or leave the step out")

    def apply(self, document: Doc) -> Doc | Rejected:
        """Returns the document with tags in place of what was found, or why it is dropped."""
        found = find_pii(document.text, self.wanted)
        if not found:
            return document
        for finding in found:
            if self.actions[finding.option] == "drop":
                kind = KINDS[finding.option].name
                number = sum(other.option == finding.option for other in found)
                return Rejected(f"pii_{kind}", f"{number} found")  # not what: a report must not repeat it
        parts, at = [], 0
        for finding in found:
            parts += [document.text[at : finding.start], KINDS[finding.option].tag]
            at = finding.end
            self.counts[KINDS[finding.option].name] += 1
        document.text = "".join(parts) + document.text[at:]
        return document
