"""The top-level domains that an email address is believed to have: all country codes, and the usual generic ones.

`w@x.transpose` in source code is no address, and there are some 1,400 generic domains of which few see mail: the list
is short on purpose. Source: IANA's root zone database.
"""

GENERIC = frozenset(
    """
com org net edu gov mil int info biz name pro aero coop museum jobs mobi travel tel cat asia post xxx arpa app
dev page blog shop store online site website tech cloud digital email agency company solutions services group
media news press live life world today space xyz club design studio art software systems network host academy
school university institute foundation health care law legal consulting finance bank london berlin paris nyc
tokyo example wiki global international eco ngo ong works zone team chat games community social
    """.split()  # noqa: SIM905
)

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
