import random

import pytest

from lit_gpt.data.cleaning.pii import IBAN_LENGTHS, iban_valid, luhn_valid

# The schemes' published test numbers, and the example of ISO/IEC 7812-1.
CARDS = [
    "4111111111111111",
    "4012888888881881",
    "4222222222222",
    "5555555555554444",
    "5105105105105100",
    "378282246310005",
    "371449635398431",
    "6011111111111117",
    "6011000990139424",
    "30569309025904",
    "38520000023237",
    "3530111333300000",
    "3566002020360505",
    "2223003122003222",
    "79927398713",
]
# The examples of the SWIFT IBAN registry.
IBANS = [
    "AD1200012030200359100100",
    "AE070331234567890123456",
    "AT611904300234573201",
    "BE68539007547034",
    "BG80BNBG96611020345678",
    "CH9300762011623852957",
    "CY17002001280000001200527600",
    "CZ6508000000192000145399",
    "DE89370400440532013000",
    "DK5000400440116243",
    "EE382200221020145685",
    "ES9121000418450200051332",
    "FI2112345600000785",
    "FR1420041010050500013M02606",
    "GB29NWBK60161331926819",
    "GR1601101250000000012300695",
    "HR1210010051863000160",
    "HU42117730161111101800000000",
    "IE29AIBK93115212345678",
    "IL620108000000099999999",
    "IS140159260076545510730339",
    "IT60X0542811101000000123456",
    "LI21088100002324013AA",
    "LT121000011101001000",
    "LU280019400644750000",
    "LV80BANK0000435195001",
    "MC5811222000010123456789030",
    "MT84MALT011000012345MTLCAST001S",
    "NL91ABNA0417164300",
    "NO9386011117947",
    "PL61109010140000071219812874",
    "PT50000201231234567890154",
    "RO49AAAA1B31007593840000",
    "SA0380000000608010167519",
    "SE4550000000058398257466",
    "SI56263300012039086",
    "SK3112000000198742637541",
    "SM86U0322509800000000270100",
    "TN5910006035183598478831",
    "TR330006100519786457841326",
    "UA213223130000026007233566001",
    "BR1800360305000010009795493C1",
    "SC18SSCB11010000000000001497USD",
    "LC55HEMM000100010012001200023015",
    "NI92BAMC000000000000000003123123",
]


@pytest.mark.parametrize("number", CARDS)
def test_luhn_accepts_known_numbers_and_notices_any_wrong_digit(number):
    assert luhn_valid(number)
    for place in range(len(number)):
        for digit in "0123456789":
            wrong = number[:place] + digit + number[place + 1 :]
            assert luhn_valid(wrong) == (wrong == number)


def test_luhn_accepts_one_number_in_ten():
    rng = random.Random(0)
    assert sum(luhn_valid(f"{rng.randrange(10**16):016}") for _ in range(5000)) == pytest.approx(500, abs=70)


@pytest.mark.parametrize("iban", [iban for iban in IBANS if not iban.startswith("NI")])
def test_iban_accepts_the_registrys_examples_and_notices_any_wrong_character(iban):
    assert iban_valid(iban)
    for place, character in enumerate(iban):
        others = "0123456789" if character.isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # a letter is two digits
        for other in others.replace(character, ""):
            assert not iban_valid(iban[:place] + other + iban[place + 1 :])
    assert not iban_valid(iban + "0")
    assert not iban_valid("XX" + iban[2:])


def test_lengths_are_those_of_the_examples():
    assert all(IBAN_LENGTHS[iban[:2]] == len(iban) for iban in IBANS if not iban.startswith("NI"))
