"""Strings that break inexact tokenizers: every one must be reproduced exactly from its ids.

Written for this project in the spirit of the Big List of Naughty Strings and Kuhn's UTF-8 stress test. Input that is
not text is rejected with its position: bytes that are invalid in their file's encoding by the file readers, a lone
surrogate by `Tokenizer.encode`. Everything else is text and is preserved to the byte.
"""

# ruff: noqa: RUF001 (look-alikes are the point)

from collections.abc import Mapping

HOSTILE: Mapping[str, str] = {
    "empty": "",
    "one space": " ",
    "spaces before and after": "   padded   ",
    "spaces of every width": "a\u00a0b\u2002c\u2003d\u2009e\u202ff\u3000g\u1680h\u205fi",
    "line ends": "unix\nwindows\r\nmac\rnext\u0085line\u2028paragraph\u2029end",
    "tabs and form feeds": "\t\ta\x0bb\x0cc\t",
    "blank lines": "\n\n\n   \n\t\n\r\n\r\n",
    "zero byte": "before\x00after",
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f" + "".join(map(chr, range(0x80, 0xA0))),
    "terminal escapes": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "byte order mark": "\ufeffat the start and in\ufeffside",
    "zero-width": "zero\u200bwidth\u200cnon\u200djoiner\u2060word",
    "direction overrides": "\u202eright to left\u202c \u2066isolated\u2069 \u200f\u200e",
    "combining marks": "e\u0301 \u00e9 o\u0308\u0304 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘",
    "composed and decomposed": "\u1e9b\u0323 \u1e9b\u0323 \uac00 \u1100\u1161 \u212b \u00c5 A\u030a",
    "compatibility forms": "\ufb01 \u2460 \uff21\uff22 \u00b2\u00b3\u00b9 \u00bc\u00bd\u00be \u2103 \u3392",
    "emoji sequences": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 1️⃣ ❤️ 🧑🏿‍🚀",
    "beyond the basic plane": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎𠜱 𓀀 🀄 \U000e0041",
    "noncharacters": "\ufdd0 \ufffe \uffff \U0001fffe \U0010ffff",
    "private use": "\ue000 \uf8ff \U000f0000 \U0010fffd",
    "replacement character": "\ufffd is text, too: \ufffd\ufffd",
    "first and last of each UTF-8 length": "\x01\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff",
    "Chinese": "我能吞下玻璃而不伤身体。漢字，標點「」",
    "Japanese": "私はガラスを食べられます。ｶﾞﾗｽ ヽ༼ຈل͜ຈ༽ﾉ",
    "Korean": "나는 유리를 먹을 수 있어요. 그래도 아프지 않아요",
    "Arabic": "أنا قادر على أكل الزجاج و هذا لا يؤلمني. ﷽",
    "Hebrew": "אני יכול לאכול זכוכית וזה לא מזיק לי",
    "Hindi": "मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती",
    "Thai": "ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ",
    "Georgian, Armenian, Amharic": "მინას ვჭამ ապակի ሰማይ",
    "Cyrillic and Greek": "Я могу есть стекло. Μπορώ να φάω σπασμένα γυαλιά",
    "look-alikes": "раураl.com pаypal.com ｐａｙｐａｌ",
    "cases that change length": "İi Iı ß ẞ ŉ ǰ ΐ ﬃ",
    "numbers": "0 00 1e1000 -1.5E-07 0x1F 1,000,000.00 ١٢٣ ४५६ Ⅷ 3.141592653589793238462643",
    "apostrophes": "don't DON'T we'll I'd've 's 'S ’s it´s",
    "code": "def f(x):\n\treturn {\"a\": [1, 2,], **x}  # TODO: \\n '''\n",
    "injections": "'; DROP TABLE users; -- <script>alert(1)</script> ${7*7} {{7*7}} %s%d%n ../../etc/passwd",
    "special tokens spelled out": "<|endoftext|> <|im_start|>user <s></s> [CLS] [MASK] <unk> <pad> <0x0A> ▁▁ Ġ Ċ",
    "a long run": "a" * 3000,
    "a long run of spaces": " " * 1000 + "x",
    "a long word without spaces": "0123456789abcdef" * 200,
    "a long run of one emoji": "😀" * 500,
}
