# ruff: noqa: RUF001 (words of all scripts)
"""Tables of the `pii` transform: joining characters, top-level domains, context words, IBAN lengths."""

JOINING = r"0-9A-Za-z_\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0370-\u052f\u0531-\u0587\u1e00-\u1fff"
"""Characters that extend an adjacent identifier, as a range for a pattern: ASCII letters, digits, underscore, and the
letters of scripts with upper case (Latin, Greek, Cyrillic, Armenian). `\\w` is not used: Chinese, Japanese, Korean,
Thai, Arabic, Hebrew and Indic scripts write an address or number without a space next to it."""

GENERIC = frozenset(
    """
com org net edu gov mil int info biz name pro aero coop museum jobs mobi travel tel cat asia post xxx arpa app
dev page blog shop store online site website tech cloud digital email agency company solutions services group
media news press live life world today space xyz club design studio art software systems network host academy
school university institute foundation health care law legal consulting finance bank london berlin paris nyc
tokyo example wiki global international eco ngo ong works zone team chat games community social
    """.split()  # noqa: SIM905
)
"""Common generic top-level domains (IANA's root zone database). There are some 1,400, few of which are used for mail,
and `w@x.transpose` in source code is not an address, so the list is deliberately short."""

COUNTRIES = frozenset(
    """
ac ad ae af ag ai al am ao ar at au az ba bb bd be bf bg bh bi bj bm bn bo br bs bt bw by bz ca cc cd cf cg ch
ci ck cl cm cn co cr cu cv cw cy cz de dj dk dm do dz ec ee eg er es et eu fi fj fm fo fr ga gd ge gf gg gh gi
gl gm gn gp gq gr gt gu gw gy hk hn hr ht hu id ie il im in io iq ir is it je jm jo jp ke kg kh ki km kn kp kr
kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mh mk ml mm mn mo mp mq mr ms mt mu mv mw mx my mz na
nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py qa re ro rs ru rw sa sb sc sd se
sg sh si sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl tm tn to tr tt tv tw tz ua ug uk us uy
uz va vc ve vg vi vn vu wf ws ye yt za zm zw
    """.split()  # noqa: SIM905
)
"""All country-code top-level domains (IANA's root zone database)."""

CALLING_CODES = frozenset(
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
"""Country calling codes (ITU-T E.164)."""

IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
"""Length of IBANs by country (SWIFT IBAN registry)."""

ATTRIBUTES = frozenset("to at mv mm ge gt lt ne id tr".split())  # noqa: SIM905
"""Country codes that are also array methods: `A@B.to(device)` and `x@y.at[0]` in source code are not addresses."""

VERSION_WORDS = (
    r"versions?|release[sd]?|build|revision|rev\.?|patch|section|sec\.|chapter|clause|appendix|figure|"
    r"fig\.|table|oid|firmware|driver|python|chrome|firefox|safari|opera|edge|kernel|versi[oó]n|versão|versione|"
    r"versie|wersja|abschnitt|kapitel|версия|версии|раздел|版本|版|バージョン|第|버전|เวอร์ชัน|รุ่น|phiên bản|"
    r"الإصدار|إصدار|संस्करण"
)
"""Words before four dotted numbers that mark them as a version or a section."""

ADDRESS_WORDS = (
    r"address|addr|server|client|gateway|nameserver|proxy|remote|listen|connect|"
    r"adresse|dirección|servidor|serveur|endereço|indirizzo|адрес[а-я]?|сервер[а-я]?|地址|服务器|伺服器|主机|"
    r"アドレス|サーバー|주소|서버|เซิร์ฟเวอร์|ที่อยู่|địa chỉ|máy chủ|عنوان|خادم|पता|सर्वर"
)
"""Words before four small dotted numbers that mark them as an IP address."""

PHONE_WORDS = (
    r"tel|telephone|phone|fax|mobile|mob|cell|cellphone|hotline|whatsapp|sms|gsm|msisdn|telefon|telefonnummer|"
    r"handy|mobil|mobilnummer|fon|tél|téléphone|portable|teléfono|telefono|telefone|móvil|celular|cel|cellulare|"
    r"tlf|telf|telefoon|telepon|điện thoại|sđt|đt|тел|телефон[уа]?|моб|факс|звоните|τηλ|τηλέφωνο|电话|電話|手机|"
    r"手機|热线|熱線|传真|傳真|拨打|撥打|致电|携帯|전화|휴대폰|휴대전화|연락처|팩스|โทร|โทรศัพท์|เบอร์|มือถือ|"
    r"هاتف|الهاتف|جوال|اتصل على|טל|טלפון|נייד|फ़ोन|फोन|मोबाइल|दूरभाष"
)
"""Words before digits that mark them as a phone number."""
