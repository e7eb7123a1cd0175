"""Where phone numbers stand in a text.

Three kinds: international (+ and a calling code that exists), North American in their usual groups, and national ones
after a word such as "Tel.". Any other digits stay. Linear in time, as in `pii_network.py`.
"""

import re
from collections.abc import Iterator

from lit_gpt.data.cleaning.pii_network import Span

# Country calling codes (ITU-T E.164), by length.
_CALLING_CODES = frozenset(
    """
1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84
86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236
237 238 239 240 241 242 243 244 245 246 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266
267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378 380
381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595 596 597
598 599 670 672 673 674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 800 850 852 853 855
856 870 880 886 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 979 992 993 994 995 996 998
    """.split()  # noqa: SIM905
)
_PHONE_INTERNATIONAL = re.compile(
    r"\+(?<![\w+.\-*/^)=%$£€].)(?P<number>[1-9]\d{0,3}"
    r"(?:[ .\-\u00a0\u2011]?\(\d{1,4}\)|[ .\-\u00a0]\d(?=[ .\-\u00a0]))?"  # an area code: (0)30, or 4 in +33 4 54 ...
    r"(?:[ .\-\u00a0\u2011/]?\d{2,12}){1,6})(?![\w+*^%]|[.,\-]\d)"
)
_PHONE_NORTH_AMERICA = re.compile(
    r"[(1-9](?<![\w+.\-*/#$£€].)(?:(?<=1)[ .\-]\(?[2-9]|(?<=\()[2-9]|(?<=[2-9]))"
    r"\d\d(?:\)[ \u00a0\-]?|(?P<dash>[\-.\u2011]))[2-9]\d\d(?(dash)(?P=dash)|[ .\-\u2011])\d{4}(?![\w*]|[.,\-/]\d)"
)
_PHONE_NATIONAL = re.compile(
    r"[(0](?<![\w.].)(?:(?<=\()0)?\d{1,5}\)?(?:(?:[ .\-/\u00a0]{1,2}\(?\d{2,9}\)?){1,4}|\d{4,8})(?![\w*]|[.,\-/]\d)"
)
_PHONE_WORD_BEFORE = re.compile(
    r"(?i)(?:^|[^\w])(?:tel|telephone|phone|fax|mobile|cell|call|telefon|tél|téléphone|teléfono|whatsapp)"
    r"(?:\.|\s?(?:no|number|nr)\.?)?\s{0,2}[:=]?\s{0,3}\Z"
)


def find_phone_numbers(text: str) -> Iterator[Span]:
    """Yields phone numbers of the three kinds."""
    for match in _PHONE_INTERNATIONAL.finditer(text):
        number = match["number"]
        digits = re.sub(r"\D", "", number)
        if not 8 <= len(digits) <= 15 or not any(digits[:n] in _CALLING_CODES for n in (1, 2, 3)):
            continue
        if digits[0] == "1" and (len(digits) != 11 or digits[1] in "01" or digits[4] in "01"):
            continue
        if digits == number and (len(digits) < 10 or digits.endswith("000000")):
            continue  # a sum in code: +10000000
        if re.fullmatch(r"\d+\.\d+", number):
            continue  # a decimal fraction
        yield match.span()
    for match in _PHONE_NORTH_AMERICA.finditer(text):
        yield match.span()
    for match in _PHONE_NATIONAL.finditer(text):
        before = text[max(0, match.start() - 24) : match.start()]
        if 8 <= sum(map(str.isdecimal, match[0])) <= 14 and _PHONE_WORD_BEFORE.search(before):
            yield match.span()
