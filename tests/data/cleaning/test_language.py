import random

import pytest
from cleaning_run import judge

from lit_gpt.data.cleaning.base import Rejected
from lit_gpt.data.cleaning.language import Language, identify
from lit_gpt.errors import UserError

# The first article of the Universal Declaration of Human Rights.
ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and should act towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e di coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd met verstand en geweten, en behoren zich jegens elkander in een geest van broederschap te gedragen.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de razão e de consciência, devem agir uns para com os outros em espírito de fraternidade.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны поступать в отношении друг друга в духе братства.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler ve birbirlerine karşı kardeşlik zihniyeti ile hareket etmelidirler.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "ar": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
}


def test_names_languages(capsys):
    right = sum(identify(text)[0] == language for language, text in ARTICLE.items())
    sure = min(identify(text)[1] for text in ARTICLE.values())
    with capsys.disabled():
        print(f"\nlanguage: {right} of {len(ARTICLE)} articles named rightly, least confidence {sure:.2f}")
    assert right == len(ARTICLE)


def test_keeps_the_wanted_and_labels_them():
    step = Language(keep=["en", "de"])
    for language, text in ARTICLE.items():
        result = judge(step, text)
        if language in ("en", "de"):
            assert result.metadata["language"] == language
        else:
            assert (result.reason, result.detail[:2]) == ("language", language)
    assert judge(Language(), ARTICLE["fr"]).metadata["language"] == "fr"


def test_unsure_and_undetermined():
    words = [word for text in ARTICLE.values() for word in text.split()]
    random.Random(0).shuffle(words)
    result = judge(Language(keep=["en", "fr", "es", "de"], min_confidence=0.99), " ".join(words[:60]))
    assert result.reason in ("language_unsure", "language")
    assert judge(Language(keep=["en"]), "12345 + 678 = \n\n") == Rejected("language", "und (1.00)")
    assert judge(Language(), "").metadata["language"] == "und"


def test_a_declared_language_is_taken():
    assert judge(Language(keep=["python"]), "def f(): pass", language="python").metadata["language"] == "python"
    assert judge(Language(keep=["en"]), ARTICLE["en"], language="python").reason == "language"


@pytest.mark.parametrize(
    "text", ["\x00", "\ud800", "\u0301" * 1000, "😀", "\n\r\u2028\x85\x0b", "a" * 3_000_000, "ﷺ" * 100_000]
)
def test_strange_text_gets_a_label(text):
    language, confidence = identify(text)
    assert language
    assert 0 <= confidence <= 1


def test_wrong_options():
    with pytest.raises(UserError, match=r"language: keep is .*\[en\]"):
        Language(keep="en")
    with pytest.raises(UserError, match="min_confidence is 65"):
        Language(min_confidence=65)
