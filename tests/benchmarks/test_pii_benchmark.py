"""The `pii` transform on the labelled places of `benchmarks/pii.py`."""

import importlib.util
from pathlib import Path

import pytest

from lit_gpt.data.cleaning.pii import KINDS, find_pii

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pii.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("pii_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [0, 1])
def test_recall_and_precision_of_each_kind_and_language(benchmark, seed):
    places = benchmark.make_places(rounds=4, seed=seed)
    assert sum(len(labels) for _, _, labels in places) > 500
    result = benchmark.measure(places)
    assert set(KINDS) < set(result["scores"])
    for key, score in result["scores"].items():
        assert score["places"] >= 30, key
        assert score["recall"] >= 0.98, (key, result["missed"])
        assert score["precision"] >= 0.95, (key, result["wrong"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("EMAIL=ada@lovelace.org", "ada@lovelace.org"),
        ("?email=ada.l@gmail.com", "ada.l@gmail.com"),
        ("?a=1&email=ada.l%40gmail.com&b=2", "ada.l%40gmail.com"),
        ("ada@lovelace.org: no such user", "ada@lovelace.org"),
        ("ada@lovelace.org[1]", "ada@lovelace.org"),
        ("ada@lovelace.org(work)", "ada@lovelace.org"),
        ("ada@lovelace.org:hunter2", "ada@lovelace.org"),
        ("*_ada@lovelace.org_*", "_ada@lovelace.org"),
        ("请发送邮件至zhang.wei@163.com联系", "zhang.wei@163.com"),
        ("拨打+86 138 1234 5678咨询", "+86 138 1234 5678"),
        ("服务器93.184.216.34的日志", "93.184.216.34"),
        ("卡号4111111111111111。", "4111111111111111"),
        ("phone=+442079460958&x=1", "+442079460958"),
        ("w@x.to(device)", None),
        ("x@y.at[0]", None),
        ("git@github.com:user/repo.git", None),
        ("root@host.com:/etc/passwd", None),
        ("deploy@host.com:app/current", None),
        ("x=+442079460958", None),
        ("FileVersion=1.2.3.104", None),
        ("第4.15.0.112节", None),
    ],
)
def test_what_touches_a_place(text, found):
    assert [text[finding.start : finding.end] for finding in find_pii(text)] == ([] if found is None else [found])
