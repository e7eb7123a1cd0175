"""`evaluate` from the command line: reports, exit statuses, the gate's verdict beside the model, comparison."""

import json
from types import SimpleNamespace

import pytest
import yaml
from small_models import small_bundle

from lit_gpt.cli import main
from lit_gpt.errors import UserError
from lit_gpt.evaluation.compare import find_report
from lit_gpt.evaluation.plan import load_plan
from lit_gpt.evaluation.report import check_writable, evaluation_options, folder_name, gate_of, read_report, reports_of

LETTERS = "small_models.CountsLetters"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("def add(a, b):\n    return a + b\n" * 20)

    def write(name="letters", gate=None, **options):
        content = {
            "measures": [
                {"class_path": "LanguageModeling", "init_args": {"texts": {"files": "text.txt"}}},
                {"class_path": LETTERS, "init_args": options},
            ]
        }
        if gate:
            content["gate"] = gate
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content))
        return str(file)

    return write


def test_a_report_lies_beside_the_bundle(bundle, plan, capsys):
    assert main(["evaluate", "--model", str(bundle), "--config", plan()]) == 0
    told = capsys.readouterr().out
    assert "language_modeling.bits_per_byte" in told
    assert "letters.share" in told
    assert "50.0 %" in told
    folder = bundle / "evaluation" / "letters"
    assert told.strip().endswith(str(folder / "report.html"))
    report = read_report(folder)
    assert [result.name for result in report.results] == ["language_modeling", "letters"]
    assert report.results[1].score("share").per_item["item 3"] == 0.5
    content = report.content
    assert content["model"]["name"] == "tiny"
    assert len(content["model"]["weights_sha256"]) == 64
    assert str(bundle.parent) not in (folder / "report.json").read_text()
    page = (folder / "report.html").read_text()
    assert str(bundle.parent) not in page
    assert "Content-Security-Policy" in page
    assert "http" not in page.split("</style>")[1].replace("http-equiv", "")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;one" in page


def test_the_gate_decides_the_exit_status_and_export_can_ask(bundle, plan, capsys):
    passes, fails = {"letters.share": {"min": 0.5}}, {"letters.share": {"min": 0.6}}
    assert main(["evaluate", "--model", str(bundle), "--config", plan("passes", passes)]) == 0
    assert "gate passed: 1 of 1" in capsys.readouterr().out
    assert gate_of(bundle).passed
    assert main(["evaluate", "--model", str(bundle), "--config", plan("fails", fails)]) == 3
    assert "gate missed: letters.share: 0.5, below the minimum of 0.6" in capsys.readouterr().out
    record = gate_of(str(bundle))
    assert not record.passed
    assert record.missed[0].bound == 0.6
    assert record.report.parent.name == "fails"
    assert main(["evaluate", "--model", str(bundle), "--config", plan("fails", passes)]) == 0
    assert gate_of(bundle).passed  # the newest counts


def test_no_other_plan_lifts_a_missed_gate(tmp_path, plan):
    bundle = small_bundle(tmp_path / "tiny")
    evaluate = ["evaluate", "--model", str(bundle), "--config"]
    easy, hard = {"letters.share": {"min": 0.1}}, {"letters.share": {"min": 0.6}}
    assert main([*evaluate, plan("g", hard)]) == 3
    assert main([*evaluate, plan("g2", easy)]) == 0
    record = gate_of(bundle)
    assert not record.passed
    assert record.plans == ("g",)
    assert [verdict.bound for verdict in record.missed] == [0.6]
    assert record.report.parent.name == "g"
    assert main([*evaluate, plan("g", hard, value=0.9), "--limit", "2"]) == 0  # a quick look lies beside the whole
    assert (bundle / "evaluation" / "g-limit-2" / "report.json").is_file()
    assert not gate_of(bundle).passed
    assert main([*evaluate, plan("g", hard, value=0.9)]) == 0
    record = gate_of(bundle)
    assert record.passed
    assert set(record.plans) == {"g", "g2"}
    assert main([*evaluate, plan("g3", hard), "--limit", "2"]) == 3
    assert main([*evaluate, plan("g3", easy), "--limit", "3"]) == 0  # nor does another quick look
    assert gate_of(bundle).plans == ("g3",)


def test_a_missed_gate_is_not_written_over_by_another_plan(tmp_path, plan, capsys):
    bundle = small_bundle(tmp_path / "tiny")
    evaluate = ["evaluate", "--model", str(bundle), "--out", str(bundle / "evaluation" / "g"), "--config"]
    assert main([*evaluate, plan("g", {"letters.share": {"min": 0.6}})]) == 3
    for other in ([plan("g2")], [plan("g"), "--limit", "1"]):
        assert main([*evaluate, *other]) == 2
        assert "whose gate this model has missed" in capsys.readouterr().err
    assert gate_of(bundle).plans == ("g",)
    assert main([*evaluate, plan("g", {"letters.share": {"min": 0.1}})]) == 0


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    bundle, plan, tmp_path, capsys, monkeypatch
):
    (tmp_path / "small.txt").write_text("x")
    monkeypatch.setattr("small_models.CountsLetters.run", lambda *_: pytest.fail("measured"))
    for words in (["--model", str(bundle)], ["--compare", str(bundle), str(bundle)]):
        for out in ("small.txt/x", "small.txt/x/y", "a" * 300):
            assert main(["evaluate", *words, "--config", plan("w"), "--out", str(tmp_path / out)]) == 2
            told = capsys.readouterr().err
            assert len(told.strip().splitlines()) == 1, told
            assert "cannot be written" in told
    check_writable(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()


def test_without_any_result_the_last_report_stays(tmp_path, plan, capsys):
    def alone(**options):
        file = tmp_path / "alone.yaml"
        file.write_text(yaml.safe_dump({"measures": [{"class_path": LETTERS, "init_args": options}]}))
        return ["evaluate", "--model", str(bundle), "--config", str(file)]

    bundle = small_bundle(tmp_path / "tiny")
    assert main(alone()) == 0
    file = bundle / "evaluation" / "alone" / "report.json"
    before = file.read_bytes()
    capsys.readouterr()
    for fail, status in (("mistake", 2), ("by zero", 1)):
        assert main(alone(fail=fail)) == status
        captured = capsys.readouterr()
        assert "the report in" in captured.err
        assert captured.out == ""
        assert file.read_bytes() == before


def test_a_chat_template_and_an_adapter_make_another_evaluation(tmp_path, plan, monkeypatch):
    bundle = small_bundle(tmp_path / "tiny")
    config = plan("t")
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}")
    assert main(["evaluate", "--model", str(bundle), "--config", config]) == 0
    read = load_plan(config)
    assert find_report(str(bundle), read) == bundle / "evaluation" / "t" / "report.json"
    assert find_report(str(bundle), read, chat_template=str(template)) is None
    assert main(["evaluate", "--model", str(bundle), "--config", config, "--chat_template", str(template)]) == 0
    found = bundle / "evaluation" / "t-mine.jinja" / "report.json"
    assert find_report(str(bundle), read, chat_template=str(template)) == found
    assert read_report(found).content["config"]["chat_template"]["name"] == "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}!<|endoftext|>{% endfor %}")
    assert find_report(str(bundle), read, chat_template=str(template)) is None
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(
        "lit_gpt.evaluation.report.resolve_adapter", lambda name: SimpleNamespace(path=tmp_path / "adapter")
    )
    assert find_report(str(bundle), read, adapter="adapter") is None
    asked = evaluation_options(str(bundle), "adapter", None)
    assert folder_name("t", asked) == "t-adapter"
    content = json.loads(found.read_text())
    content["config"] = {**read.config, **asked}
    found.write_text(json.dumps(content))
    assert find_report(str(bundle), read, adapter="adapter") == found
    assert [report.file for report in reports_of(bundle)] == [bundle / "evaluation" / "t" / "report.json"]


def test_absolute_paths_in_a_plan_do_not_hide_its_report(tmp_path, plan):
    bundle = small_bundle(tmp_path / "tiny")
    file = tmp_path / "absolute.yaml"
    texts = {"files": str(tmp_path / "text.txt")}
    file.write_text(yaml.safe_dump({"measures": [{"class_path": "LanguageModeling", "init_args": {"texts": texts}}]}))
    plan()
    assert main(["evaluate", "--model", str(bundle), "--config", str(file)]) == 0
    assert find_report(str(bundle), load_plan(file)) is not None


def test_names_of_a_users_measure_are_spelt_out(bundle, plan, tmp_path, capsys):
    name = "a\0b\x1b[2J\u202eevil"
    words = ["--config", plan("n", {"x.y": {"min": 1}}, result=name), "--out", str(tmp_path / "o")]
    assert main(["evaluate", "--model", str(bundle), *words]) == 3
    report = str(tmp_path / "o")
    assert main(["evaluate", "--compare", report, report, "--out", str(tmp_path / "c")]) == 0
    told = capsys.readouterr().out
    assert told.count("a\\x00b\\x1b[2J\\u202eevil.share") == 3  # its score, what the gate suggests, the comparison
    assert all(character.isprintable() or character == "\n" for character in told)


def test_the_verdict_is_about_these_weights(tmp_path, plan):
    first = small_bundle(tmp_path / "one")
    assert gate_of(first) is None
    assert main(["evaluate", "--model", str(first), "--config", plan("g", {"letters.share": {"min": 0.6}})]) == 3
    second = small_bundle(tmp_path / "two", seed=1)
    (first / "evaluation").rename(second / "evaluation")
    assert gate_of(second) is None
    assert gate_of(first) is None


def test_a_damaged_report_is_named(tmp_path):
    bundle = small_bundle(tmp_path / "one")
    (bundle / "evaluation" / "x").mkdir(parents=True)
    (bundle / "evaluation" / "x" / "report.json").write_text("{}")
    with pytest.raises(UserError, match="report"):
        gate_of(bundle)


@pytest.mark.parametrize(("fail", "status"), [("mistake", 2), ("by zero", 1)])
def test_a_failing_measure_loses_nobody_elses_results(bundle, plan, tmp_path, capsys, fail, status):
    gate = {"letters.share": {"min": 0}, "language_modeling.loss": {"max": 100}}
    words = [
        "evaluate",
        "--model",
        str(bundle),
        "--config",
        plan("failing", gate, fail=fail),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(words) == status
    captured = capsys.readouterr()
    assert captured.err.count("measure 2 (CountsLetters): failed: ") == 1
    assert "CountsLetters" not in captured.out
    assert ("Traceback" in captured.err) == (status == 1)
    report = read_report(tmp_path / "o")
    assert [result.name for result in report.results] == ["language_modeling"]
    assert report.content["failures"][0]["measure"] == "measure 2 (CountsLetters)"
    assert not report.content["gate"]["passed"]
    assert "Measures that gave no result" in (tmp_path / "o" / "report.html").read_text()


def test_runs_again_in_the_same_place_and_says_the_same(bundle, plan, tmp_path):
    words = ["evaluate", "--model", str(bundle), "--config", plan(), "--out", str(tmp_path / "o")]
    contents = []
    for _ in range(2):
        assert main(words) == 0
        content = json.loads((tmp_path / "o" / "report.json").read_text())
        contents.append({key: value for key, value in content.items() if key not in ("created", "seconds")})
    assert contents[0] == contents[1]


def test_mistakes_end_before_anything_is_written(bundle, plan, tmp_path, capsys):
    keeps = tmp_path / "keeps"
    keeps.mkdir()
    (keeps / "thesis.txt").write_text("x")
    config, model = plan(), str(bundle)
    for words, said in (
        (["--config", config], "--model"),
        (["--model", model], "--config"),
        (["--model", model, "--config", config, "--suite", "safety"], "--suite"),
        (["--model", model, "--config", config, "--out", str(keeps)], "--out"),
        (["--model", model, "--config", config, "--limit", "0"], "limit is 0"),
        (["--model", model, "--config", config, "--chat_template", "nowhere.jinja"], "nowhere.jinja"),
        (["--model", str(tmp_path / "no"), "--config", config], "does not exist"),
        (["--compare", model, "--config", config], "--compare"),
        (["--compare", model, model, "--model", model], "--model"),
    ):
        assert main(["evaluate", *words]) == 2
        captured = capsys.readouterr()
        assert len(captured.err.strip().splitlines()) == 1, captured.err
        assert said in captured.err
    assert [file.name for file in keeps.iterdir()] == ["thesis.txt"]


def test_a_checkpoint_of_a_run_is_reported_in_the_run(bundle, tmp_path):
    from lit_gpt.evaluation.report import own_folder, report_folder

    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000004.ckpt"
    assert own_folder(checkpoint) == tmp_path / "run" / "evaluation"
    assert own_folder(tmp_path / "elsewhere") is None
    assert str(report_folder(tmp_path / "cache", "org/name")) == "evaluation/org--name"
    assert own_folder(bundle) == bundle / "evaluation"


def test_compare_measures_what_is_missing_and_finds_the_difference(tmp_path, plan, capsys):
    one, two = small_bundle(tmp_path / "one"), small_bundle(tmp_path / "two", seed=1)
    config = plan("c", value=1.0)
    words = ["evaluate", "--compare", str(one), str(two), "--config", config, "--out", str(tmp_path / "c")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "one -> two" in told
    assert "letters.share" in told
    assert "may be chance" in told
    content = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert content["names"] == ["one", "two"]
    loss = next(line for line in content["differences"] if line["key"] == "language_modeling.loss")
    assert loss["difference"] == pytest.approx(loss["second"] - loss["first"])
    page = (tmp_path / "c" / "comparison.html").read_text()
    assert "<script" not in page
    assert "language_modeling" in page
    before = (one / "evaluation" / "c" / "report.json").stat().st_mtime_ns
    assert main(["evaluate", "--compare", str(one), str(two)]) == 0  # each has one report
    assert main([*words]) == 0
    assert (one / "evaluation" / "c" / "report.json").stat().st_mtime_ns == before


def test_explain_lists_measures_and_their_options(capsys):
    assert main(["evaluate", "--explain"]) == 0
    told = capsys.readouterr().out
    assert "LanguageModeling     Loss, perplexity and bits per byte over texts." in told
    assert main(["evaluate", "--explain", "LanguageModeling"]) == 0
    assert "stride: " in capsys.readouterr().out
    assert main(["evaluate", "--explain", "LanguageModelling"]) == 2
    assert "did you mean LanguageModeling" in capsys.readouterr().err
