"""Encodings by name, by byte order mark and found from the bytes; against the texts that were encoded."""

import io
from pathlib import Path

import pytest

from lit_gpt.data.records import BadInput, FileFormat, FileRecords
from lit_gpt.data.records.encoding import Encoding, choose_encoding
from lit_gpt.errors import UserError

TEXTS = {
    "Spanish": "El niño pequeño comió piñas mañana en España; ¿qué pasó con el señor? La canción de otoño es única.",
    "German": "Über den Bäumen fährt der Wind, und die Straße glänzt im späten Licht. Größe und Übung, „schön“, – ja.",
    "French": "Le garçon a mangé une pêche à l'été dernier, où les élèves étaient très fatigués. Ça n'a pas d'intérêt.",
    "Portuguese": "O coração não é uma máquina; as emoções são difíceis. Amanhã haverá pão, açúcar e café à mesa.",
    "Italian": "La città è più bella di così: perché non c'è libertà? Lunedì andrò a vedere l'università, però è tardi.",
    "Swedish": "Hon åkte till sjön på sommaren för att äta räkor och blåbär. Flickan är sjutton år.",
    "Danish": "Det er en smuk ø på den anden side af åen, hvor børnene løber og spiser æbler.",
    "Polish": "Zażółć gęślą jaźń. Dziewczyna poszła na łąkę, żeby zobaczyć księżyc. Mężczyzna świętował dzieciństwo.",
    "Czech": "Příliš žluťoučký kůň úpěl ďábelské ódy. Dívka šla na louku, aby viděla měsíc a hvězdy.",
    "Hungarian": "Árvíztűrő tükörfúrógép. A lány elment a rétre, hogy megnézze a holdat. Később hűvös szél fújt.",
    "Turkish": "Bütün mutlu aileler birbirine benzer. Çocuğun şapkası ağaçta kaldı, ışık söndü.",
    "Russian": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.",
    "Russian, small letters": "привет, как дела",
    "Ukrainian": "Усі щасливі родини схожі одна на одну, кожна нещаслива родина нещаслива по-своєму. Її їжа ґрунтовна.",
    "Greek": "Όλες οι ευτυχισμένες οικογένειες μοιάζουν μεταξύ τους, κάθε δυστυχισμένη είναι δυστυχισμένη.",
    "Hebrew": "כל המשפחות המאושרות דומות זו לזו, אך כל משפחה אומללה, אומללה בדרכה שלה.",
    "Arabic": "كل العائلات السعيدة تتشابه، لكن لكل عائلة تعيسة طريقتها الخاصة في التعاسة.",
    "Thai": "ครอบครัวที่มีความสุขล้วนเหมือนกัน แต่ครอบครัวที่ไม่มีความสุขต่างก็มีความทุกข์ในแบบของตัวเอง",
    "Japanese": "幸福な家庭はどれも似たものだが、不幸な家庭はいずれもそれぞれに不幸なものである。吾輩は猫である。",
    "Chinese": "幸福的家庭都是相似的，不幸的家庭各有各的不幸。我能吞下玻璃而不傷身體。",
    "Korean": "행복한 가정은 모두 모습이 비슷하고, 불행한 가정은 모두 저마다의 이유로 불행하다.",
}
WRITTEN_IN = {
    "Polish": ("cp1250", "iso8859-2"),
    "Czech": ("cp1250", "iso8859-2"),
    "Hungarian": ("cp1250", "iso8859-2"),
    "Turkish": ("cp1254",),
    "Russian": ("cp1251", "koi8-r", "cp866", "iso8859-5"),
    "Russian, small letters": ("cp1251", "koi8-r", "cp866"),
    "Ukrainian": ("cp1251", "koi8-u"),
    "Greek": ("cp1253",),
    "Hebrew": ("cp1255",),
    "Arabic": ("cp1256",),
    "Thai": ("cp874",),
    "Japanese": ("shift_jis", "euc_jp"),
    "Chinese": ("gb18030", "big5"),
    "Korean": ("cp949",),
}
CASES = [(name, encoding) for name in TEXTS for encoding in WRITTEN_IN.get(name, ("cp1252",))]


def found(data: bytes, encoding: str = "detect") -> Encoding | None:
    return choose_encoding(data[:4], encoding, lambda: io.BytesIO(data))


@pytest.mark.parametrize("padding", ["", "plain ASCII before it, half a megabyte. " * 13_000], ids=["alone", "late"])
@pytest.mark.parametrize(("name", "encoding"), CASES)
def test_an_encoding_is_found_wherever_its_letters_are(name: str, encoding: str, padding: str) -> None:
    data = (padding + TEXTS[name]).encode(encoding, "ignore")
    choice = found(data)
    assert choice is not None
    assert data.decode(choice.name) == data.decode(encoding)
    assert choice.found
    assert choice.num_bytes == sum(byte > 0x7F for byte in data)
    assert f"{choice.num_bytes:,} bytes" in choice.describe()


def test_the_commoner_encoding_wins_a_tie_and_the_other_is_named() -> None:
    choice = found("all ASCII, and one café".encode("latin-1"))
    assert choice is not None
    assert choice.name == "cp1252"
    french = found("Natásha, à la française: è, ï, ñ, tête-à-tête, élan".encode("latin-1"))
    assert french is not None
    assert french.name == "cp1252"


def test_what_is_no_text() -> None:
    assert found(bytes(range(1, 256)) * 4) is None
    assert found(b"a\0b") is None


def test_what_is_utf_8_is_not_guessed_at() -> None:
    for text in TEXTS.values():
        assert found(text.encode()) == Encoding()
    assert found(b"plain") == Encoding()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_says_what_a_file_is(tmp_path: Path, encoding: str) -> None:
    text = "Grüße \U0001f642\r\nEnde"
    for name in ("detect", "utf-8"):
        for end in ("", "-le", "-be"):
            data = text.encode(encoding) if not end else ("\ufeff" + text).encode(encoding + end)
            (tmp_path / "a.txt").write_bytes(data)
            source = FileRecords(str(tmp_path / "a.txt"), format=FileFormat(encoding=name))
            (document,) = source.documents(bad := BadInput())
            assert document.text == text
            assert document.metadata == {"encoding": encoding}
            assert bad.encoding_notes() == [f"read a.txt as {encoding.upper()}"]


def test_an_encoding_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("schön".encode("mac_roman"))
    (tmp_path / "b.txt").write_bytes("schön".encode("utf-16-le"))
    for name, encoding in (("a.txt", "mac-roman"), ("b.txt", "utf-16-le"), ("b.txt", "UTF_16_LE")):
        source = FileRecords(str(tmp_path / name), format=FileFormat(encoding=encoding))
        bad = BadInput()
        assert [document.text for document in source.documents(bad)] == ["schön"]
        assert bad.encoding_notes() == []  # the user has named it
    with pytest.raises(UserError, match=r"b\.txt: it is binary, or UTF-16 without a byte order mark"):
        list(FileRecords(str(tmp_path / "b.txt")).documents(BadInput()))
    with pytest.raises(UserError, match=r"a\.txt: it is not valid UTF-8 \(near byte 3\).*encoding: detect"):
        list(FileRecords(str(tmp_path / "a.txt")).documents(BadInput()))
    with pytest.raises(UserError, match=r"encoding is 'latin-one'.*latin-1"):
        FileFormat(encoding="latin-one")
    with pytest.raises(UserError, match="encoding is 'base64'"):
        FileFormat(encoding="base64")


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "csv"])
def test_other_encodings_in_every_text_format(tmp_path: Path, suffix: str) -> None:
    text = TEXTS["German"].replace(",", "")
    content = {
        "txt": text,
        "jsonl": f'{{"text": "{text}"}}\n',
        "json": f'[{{"text": "{text}"}}]',
        "csv": f"id,text\n1,{text}\n",
    }[suffix]
    (tmp_path / f"a.{suffix}").write_bytes(content.encode("cp1252"))
    for encoding in ("detect", "cp1252"):
        source = FileRecords(str(tmp_path / f"a.{suffix}"), format=FileFormat(encoding=encoding))
        for mode in ("error", "skip"):
            (document,) = source.documents(BadInput(mode))  # type: ignore[arg-type]
            assert document.text == text
            assert document.metadata == {"encoding": "cp1252"}


def test_several_files_are_reported_once_an_encoding(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_bytes(TEXTS["French"].encode("cp1252"))
    bad = BadInput("skip")
    list(FileRecords(str(tmp_path), format=FileFormat(encoding="detect")).documents(bad))
    (note,) = bad.encoding_notes()
    assert "0.txt as cp1252" in note
    assert "2 more files as cp1252" in note


def test_a_damaged_end_of_another_encoding_leaves_nothing_behind(tmp_path: Path) -> None:
    for name, line in (("a.jsonl", '{"text": "good"}\n'), ("a.csv", "text\ngood\n"), ("a.txt", "good\n")):
        (tmp_path / name).write_bytes(line.encode("utf-16") + b"\x00\xd8")  # half of a surrogate pair
        bad = BadInput("skip")
        assert list(FileRecords(str(tmp_path / name)).documents(bad)) == []
        assert bad.named[0].startswith(f"{name}: it is not valid UTF-16")
        assert len(bad.named) == 1
