from lit_gpt.pages import charts
from lit_gpt.pages.text import abbreviated, counted, human_bytes, interval_words, percent, score, visible, yaml_text


def test_numbers_for_people():
    assert [abbreviated(value) for value in (0, 999, 9999, 12_345, 1_234_567, 2e9)] == [
        "0",
        "999",
        "9,999",
        "12.3 k",
        "1.23 M",
        "2 G",
    ]
    shares = [percent(part, 1000) for part in (0, 0.5, 1, 55, 500, 999.5, 1000)]
    assert shares == ["0.0 %", "< 0.1 %", "0.1 %", "5.5 %", "50 %", "> 99.9 %", "100.0 %"]
    assert percent(1, 0) == "-"
    assert [counted(number, "cluster") for number in (0, 1, 2000)] == ["0 clusters", "1 cluster", "2,000 clusters"]
    assert [human_bytes(number) for number in (0, 999, 1536, 2.5e9)] == ["0 bytes", "999 bytes", "1.5 kB", "2.5 GB"]
    assert [score(0.0042, "share"), score(0.42, "share"), score(3.0), score(1.63254)] == [
        "0.42 %",
        "42.0 %",
        "3",
        "1.633",
    ]
    assert score(float("nan")) == score(None) == "not a finite number"
    assert interval_words({"low": 0.412, "high": 0.581}, "share") == "41.2 to 58.1 %"
    assert interval_words(None, "share") == ""


def test_hidden_characters_are_spelled_out():
    assert visible("<a & \x07\n", keep="\n") == "<a & \\x07\n"
    assert visible("\ud800") == "\\ud800"
    assert visible("\u202egnirts") == "\\u202egnirts"
    assert visible("a\n\tb") == "a⏎⇥b"
    assert visible("👩\u200d🔬") == "👩\u200d🔬"


def test_yaml_has_no_aliases():
    shared = ["a"]
    assert yaml_text({"x": shared, "y": shared}) == "x:\n- a\ny:\n- a\n"


def test_a_histogram_draws_each_bin_that_holds_documents():
    series = [("read", "--before", {"1": 2, "3": 4}), ("left", "--keep", {"3": 1})]
    chart = charts.histogram(series, "characters")
    assert len(chart["rectangles"]) == 3
    assert "read: 4 documents of 4 to 7 characters" in [bar["title"] for bar in chart["rectangles"]]
    assert chart["num_bins"] == 3
    assert charts.histogram([("read", "--before", {})], "characters") is None


def test_parts_of_a_bar_stay_visible_and_in_order():
    parts = charts.stacked([(50.0, "--keep", "a"), (0.0, "--drop", "b"), (0.001, "--drop", "c")], 100.0)
    assert [part["title"] for part in parts] == ["a", "c"]
    assert parts[1]["x"] == 50
    assert parts[1]["width"] == 0.35


def test_ticks_are_round_and_cover_the_values():
    values = {"x": [1, 10, 100], "series": {"loss": [3.21, None, 2.87]}, "x_label": "step", "y_label": "nats"}
    chart = charts.line_chart(values)
    assert [label for _, label in chart["y_ticks"]] == ["2.8", "2.9", "3", "3.1", "3.2", "3.3"]
    assert chart["x_label"] == "step (logarithmic)"
    assert [mark["title"] for mark in chart["lines"][0]["marks"]] == ["loss: 3.21 at 1 step", "loss: 2.87 at 100 step"]
