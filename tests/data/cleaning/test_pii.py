import base64
import random
import re
import string
import sysconfig
from pathlib import Path

import pytest
from cleaning_prose import make_document
from cleaning_run import judge
from test_checksums import CARDS, IBANS

from lit_gpt.data.cleaning.base import Rejected
from lit_gpt.data.cleaning.pii import KINDS, PII, find_pii, luhn_valid
from lit_gpt.errors import UserError

ALNUM = string.ascii_letters + string.digits


def random_text(rng, alphabet, length):
    """Random characters, at least four of them digits, as keys have."""
    text = rng.choices(alphabet, k=length)
    for place in rng.sample(range(length), 4):
        text[place] = rng.choice("23456789") if "2" in alphabet else text[place]
    return "".join(text)


def make_emails(rng, count=40):
    hosts = ["gmail.com", "mail.uni-bonn.de", "acme.co.uk", "example.org", "x.io", "firma.example.net"]
    shapes = ["{a}.{b}@{h}", "{a}@{h}", "{a}_{b}+news@{h}", "{a}{n}@{h}", "<{a}@{h}>", "mailto:{a}-{b}@{h}"]
    names = ["ada", "lovelace", "Grace", "hopper", "alan", "Turing", "o'brien"]
    return [
        rng.choice(shapes).format(a=rng.choice(names), b=rng.choice(names), n=rng.randint(1, 99), h=rng.choice(hosts))
        for _ in range(count)
    ]


def make_ips(rng, count=40):
    found = []
    while len(found) < count:
        parts = [rng.randint(1, 223), rng.randint(0, 255), rng.randint(0, 255), rng.randint(100, 254)]
        if parts[0] not in (10, 100, 127, 169, 172, 192, 198, 203):
            found.append(".".join(map(str, parts)))
    found += ["2607:f8b0:4005:805::200e", "2a00:1450:4001:0831:0000:0000:0000:200e", "2001:470:1f0b:9c1::2"]
    return found


def make_phones(rng, count=30):
    digits = lambda n: "".join(rng.choices("23456789", k=n))  # noqa: E731
    shapes = [
        lambda: f"+44 20 {digits(4)} {digits(4)}",
        lambda: f"+49 (0)30 {digits(6)}",
        lambda: f"+49 171 {digits(7)}",
        lambda: f"+33 {digits(1)} {digits(2)} {digits(2)} {digits(2)} {digits(2)}",
        lambda: f"+1-{digits(3)}-{digits(3)}-{digits(4)}",
        lambda: f"+1 ({digits(3)}) {digits(3)}-{digits(4)}",
        lambda: f"+861{digits(10)}",
        lambda: f"({digits(3)}) {digits(3)}-{digits(4)}",
        lambda: f"{digits(3)}-{digits(3)}-{digits(4)}",
        lambda: f"1-800-{digits(3)}-{digits(4)}",
        lambda: f"{digits(3)}.{digits(3)}.{digits(4)}",
        lambda: f"Tel.: 030 {digits(4)} {digits(4)}",
        lambda: f"phone 0171/{digits(7)}",
    ]
    return [rng.choice(shapes)() for _ in range(count)]


def make_cards(rng, count=30):
    found = [number for number in CARDS if len(number) > 12]
    while len(found) < count:
        body = rng.choice(["4", "51", "55", "2221", "6011"])
        body += "".join(rng.choices(string.digits, k=15 - len(body)))
        number = next(body + check for check in string.digits if luhn_valid(body + check))
        sign = rng.choice(["", " ", "-"])
        found.append(sign.join(number[start : start + 4] for start in range(0, 16, 4)))
    return [*found, "3782 822463 10005", "3714-496353-98431"]


def make_ibans(rng):
    ibans = [iban for iban in IBANS if not iban.startswith("NI")]
    return [rng.choice([iban, " ".join(iban[start : start + 4] for start in range(0, len(iban), 4))]) for iban in ibans]


def pem(rng, kind):
    body = base64.b64encode(bytes(rng.randrange(256) for _ in range(600))).decode()
    lines = "\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"


def make_secrets(rng):
    upper = string.ascii_uppercase + string.digits
    some = lambda length, alphabet=ALNUM: random_text(rng, alphabet, length)  # noqa: E731
    return [
        "AKIA" + "IOSFODNN7EXAMPLE",
        "ASIA" + some(16, upper),
        "ghp_" + some(36),
        "gho_" + some(36),
        "github_pat_" + some(22) + "_" + some(59),
        "glpat-" + some(20),
        "xoxb-" + some(12, string.digits) + "-" + some(12, string.digits) + "-" + some(24),
        "https://hooks.slack.com/services/T" + some(8, upper) + "/B" + some(8, upper) + "/" + some(24),
        "sk_live_" + some(24),
        "rk_live_" + some(24),
        "AIza" + some(35),
        "sk-" + some(48),
        "sk-proj-" + some(74),
        "sk-ant-api03-" + some(93),
        "hf_" + some(34),
        "npm_" + some(36),
        "pypi-AgEIcHlwaS5vcmc" + some(60),
        "SG." + some(22) + "." + some(43),
        "dop_v1_" + some(64, "0123456789abcdef"),
        some(9, string.digits) + ":AA" + some(33),
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + some(43),
        "AccountKey=" + some(86) + "==",
        f'api_key = "{some(32)}"',
        f"SECRET_KEY={some(40)}",
        f'"client_secret": "{some(28)}"',
        f"aws_secret_access_key: {some(40)}",
        pem(rng, ""),
        pem(rng, "RSA "),
        pem(rng, "OPENSSH "),
        pem(rng, "EC ").rpartition("\n")[0],
    ]


CLEAN = """Version 1.2.3.4 was released on 2024-01-15 at 12:30:45, and 10.0.19041 after it; see section 4.15.0.112.
The ISBN is 978-0-306-40615-7, the ISSN 2049-3630, DOI 10.1000/182, arXiv:2406.17557v2, RFC 2822.
It cost 1,234,567.89 dollars, or 12 345 678 euros; 3.14159265358979323846 and 6.02214076e23 and 299792458 are numbers.
In 1805-1812, 20,000 men; pp. 123-145; 50-60-70; 2001-2002; 1/2/2003; 24.12.1999; 12.5.2020, 07:45; 800-1000 words.
x = 0x4111111111111111; y = 9007199254740993; z = 4111111111111112; MAX = 18446744073709551615; t = 1609459200000000
if a@b.T == c: return A @ B.transpose(1, 2) + w@x.t() ; @decorator ; user@host ; git@github.com:user/repo.git ; a@b
pkg@1.2.3 react@16.8.0 numpy>=1.26.4.1 python 3.11.4.2 Chrome/91.0.4472.124 10.0.0.1 127.0.0.1 192.168.1.254 0.0.0.0
255.255.255.0 224.0.0.1 1.3.6.1.4.1.311.21.20 std::vector<int>::iterator a::b::c 12:34:56:78:9a:bc [::1] fe80::1 2001::2
key = "your_api_key_goes_here"; api_key = os.environ["API_KEY"]; secret_key = settings.SECRET_KEY_FROM_CONFIG
token = tokenizer.special_tokens_map; access_token = get_access_token_from_request(request); auth_token: "<your token>"
if line.startswith("-----BEGIN RSA PRIVATE KEY-----"): raise ValueError("-----END RSA PRIVATE KEY-----")
sk-learn, sk-estimator-with-a-long-name, hf_transformer_model, ghp_short, AKIAshort, xoxo-hugs-and-kisses-for-everybody
sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855, md5 d41d8cd98f00b204e9800998ecf8427e
uuid 123e4567-e89b-12d3-a456-426614174000; commit 7cf6ef2a; id 20240115123045123; 20200101-120000-1234; 5500-0000
+10000000 + 12345678 - 4 +1e10 +0000 UTC+0530 a+1234567890 $2,125,551,234.00 (200) 30-4000 200-300 100-200-3000
GB82 is a plate, DE89 another; NO 93 of 100; FR14 2004 1010; AT61 items; call 0 times; call(0, 12345678); tel aviv 2024
matrix[4111][1111] 4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1; 1111 2222 3333 4444; 0000 0000 0000 0000; 4444444444444444
"""


def test_nothing_is_found_in_ordinary_numbers():
    for line in CLEAN.splitlines():
        assert [(finding.option, line[finding.start : finding.end]) for finding in find_pii(line)] == []
    document = judge(PII(), CLEAN)
    assert document.text == CLEAN


def test_nothing_but_emails_is_found_in_the_standard_library():
    """12 MB of real code with versions, dates, constants, tables: one address that a socket's docstring writes out."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.glob("*.py")) + sorted(root.glob("[a-l]*/*.py")):
        text = path.read_bytes().decode("utf-8", "replace")
        found += [
            (path.name, text[f.start : f.end])
            for f in find_pii(text)
            if f.option != "emails" and path.name != "ipaddress.py"
        ]
    assert {value for _, value in found} <= {"123.45.67.89"}


def test_planted_data_are_found_and_nothing_else(capsys):
    rng = random.Random(0)
    planted = {
        "emails": make_emails(rng),
        "ip_addresses": make_ips(rng),
        "phone_numbers": make_phones(rng),
        "credit_cards": make_cards(rng),
        "ibans": make_ibans(rng),
        "secrets": make_secrets(rng),
    }
    with capsys.disabled():
        print()
        for option, values in planted.items():
            true = false = 0
            missed = []
            for value in values:
                before, after = make_document(rng, 5), make_document(rng, 5)
                frame = rng.choice(["{} ({}) {}", "{} {}. {}", "{}\n{}\n{}", "{} '{}', {}"])
                text = frame.format(before, value, after)
                found = [text[f.start : f.end] for f in find_pii(text) if f.option == option]
                others = [f for f in find_pii(text) if f.option != option]
                core = value.strip("<>").removeprefix("mailto:").removeprefix("Tel.: ").removeprefix("phone ")
                hit = any(piece in core and len(piece) >= 0.5 * len(core) for piece in found)
                true += hit
                false += len(found) - hit + len(others)
                missed += [value] * (not hit) + [text[f.start : f.end] for f in others]
            print(
                f"pii {option}: {len(values)} planted, recall {true / len(values):.3f}, precision {true / (true + false):.3f}"
            )
            assert missed == []
            assert false == 0


def test_the_whole_of_each_is_replaced_and_counted():
    text = (
        "Write to ada.lovelace@example.org or +44 20 7946 0958, from 8.8.8.108; pay 4111 1111 1111 1111 or "
        "DE89 3704 0044 0532 0130 00 with AKIAIOSFODNN7EXAMPLE. Done."
    )
    step = PII()
    assert judge(step, text).text == (
        "Write to <EMAIL> or <PHONE_NUMBER>, from <IP_ADDRESS>; pay <CREDIT_CARD> or <IBAN> with <SECRET>. Done."
    )
    assert step.counts == {
        "email": 1, "phone_number": 1, "ip_address": 1, "credit_card": 1, "iban": 1, "secret": 1,
    }  # fmt: skip


def test_private_keys_go_whole_and_twice_is_the_same_as_once():
    rng = random.Random(1)
    text = f"before\n{pem(rng, 'RSA ')}\nafter {make_emails(rng)[0]}"
    once = judge(PII(), text).text
    assert once.startswith("before\n<SECRET>\nafter ")
    assert "PRIVATE" not in once
    assert judge(PII(), once).text == once


def test_drop_and_keep():
    text = "Write to ada@lovelace.org, key AKIAIOSFODNN7EXAMPLE, twice AKIAIOSFODNN7EXAMPLE."
    assert judge(PII(secrets="drop"), text) == Rejected("pii_secret", "2 found")
    assert judge(PII(emails="keep"), text).text == text.replace("AKIAIOSFODNN7EXAMPLE", "<SECRET>")
    assert judge(PII(secrets="keep", emails="drop"), text).reason == "pii_email"
    with pytest.raises(UserError, match="pii: emails is 'mask'.*replace, drop, keep"):
        PII(emails="mask")
    with pytest.raises(UserError, match="keeps every kind"):
        PII(**dict.fromkeys(KINDS, "keep"))


@pytest.mark.parametrize("unit", ["a", "@", "a@", "a@a.", "1", "1 ", "+1", "1-", "1.1.1.1.", "(200) ", ":", "2001:", "-----BEGIN ",
                                  "key=", "eyJ", "AA00 ", "DE89 3702 ", "4111 ", "sk-", ":AA", "x@" + "a" * 61 + ".", "call 01 2",
                                  "-----BEGIN PRIVATE KEY-----", "é\u0301", "\u200d", "１２３"])  # fmt: skip
def test_time_is_linear_in_hostile_text(unit):
    """Twice the text takes no more than about twice the work, counted in the time of this process."""
    import time

    def seconds(length):
        text = (unit * length)[:length]
        start = time.process_time()
        find_pii(text)
        return time.process_time() - start

    seconds(20_000)
    assert min(seconds(200_000) for _ in range(2)) < 40 * max(min(seconds(20_000) for _ in range(3)), 0.002)


def test_placeholders_match_no_pattern():
    for kind in KINDS.values():
        assert re.fullmatch(r"<[A-Z_]+>", kind.tag)
        assert find_pii(f"a {kind.tag} b") == []
