"""Choices of kernels: made once per machine, kept in a file, the same in every later run, and never in the way."""

import json

import pytest

from lit_gpt.models import kernel_choice, packed
from lit_gpt.models.kernel_choice import choose, this_machine, where_kept


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "kernels.json"
    monkeypatch.setenv("LIT_GPT_KERNELS", str(path))
    return path


def timed(asked, **seconds):
    def measure(option):
        asked.append(option)
        return seconds[option]

    return measure


OPTIONS = {"A": "a", "B": "b"}


@pytest.mark.parametrize(
    ("a", "b", "chosen"), [(1.0, 2.0, "a"), (2.0, 1.0, "b"), (1.0, 0.97, "a")], ids=["first", "second", "within noise"]
)
def test_the_fastest_is_chosen_once_and_holds_whatever_later_measurements_say(file, a, b, chosen):
    asked = []
    assert choose("a product", OPTIONS, timed(asked, a=a, b=b)) == chosen
    assert sorted(asked) == ["a", "b"]
    assert choose("a product", OPTIONS, timed(asked, a=b, b=a)) == chosen
    assert len(asked) == 2, "nothing is measured again"
    assert choose("another product", OPTIONS, timed(asked, a=2.0, b=1.0)) == "b"
    assert str(file) in where_kept()


def test_the_file_can_be_edited(file):
    choose("a product", OPTIONS, timed([], a=1, b=2))
    kept = json.loads(file.read_text())
    (question,) = kept[this_machine()]
    kept[this_machine()][question] = "B"
    file.write_text(json.dumps(kept))
    assert choose("a product", OPTIONS, timed([], a=1, b=2)) == "b"
    assert choose("a product", {"A": "a", "C": "c"}, timed([], a=1, c=2)) == "a", "another set of options"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"x": 3}', '{"%s": {"a product: A | B": "gone"}}'])
def test_a_damaged_file_or_an_unknown_choice_is_replaced(file, content):
    file.parent.mkdir()
    file.write_text(content.replace("%s", this_machine()))
    assert choose("a product", OPTIONS, timed([], a=2, b=1)) == "b"
    assert json.loads(file.read_text())[this_machine()] == {"a product: A | B": "B"}


def test_other_machines_keep_their_own(file, monkeypatch):
    choose("a product", OPTIONS, timed([], a=1, b=2))
    monkeypatch.setattr(kernel_choice, "this_machine", lambda: "another")
    assert choose("a product", OPTIONS, timed([], a=2, b=1)) == "b"
    assert {tuple(own.values()) for own in json.loads(file.read_text()).values()} == {("A",), ("B",)}


def test_what_another_process_wrote_meanwhile_holds(file):
    def measure(option):
        choose("a product", OPTIONS, timed([], a=1, b=2)) if option == "a" else None
        return {"a": 2, "b": 1}[option]

    assert choose("a product", OPTIONS, measure) == "a"


def test_a_folder_that_cannot_be_written_only_costs_the_measurement(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIT_GPT_KERNELS", str(tmp_path / "file" / "kernels.json"))
    assert choose("a product", OPTIONS, timed([], a=2, b=1)) == "b"
    assert "cannot be written" in where_kept()


def test_a_matrix_is_multiplied_by_the_kernel_that_was_kept(file, monkeypatch):
    makes = (packed.BlasWeight, packed.OneDNNWeight)
    if not all(map(packed.is_available, makes)):
        pytest.skip("no oneDNN in this build of torch")
    for times in (
        {packed.BlasWeight: 2.0, packed.OneDNNWeight: 1.0},
        {packed.BlasWeight: 1.0, packed.OneDNNWeight: 2.0},
    ):
        monkeypatch.setattr(packed, "best_time", lambda runs, x, times=times: times[type(runs[0])])
        packed.fastest.cache_clear()  # as in another process
        assert packed.fastest(makes, 256, 128, 3) is packed.OneDNNWeight
        assert packed.fastest(makes, 32, 16) is packed.BlasWeight, "too small to be measured"
    packed.fastest.cache_clear()


def test_options_are_measured_in_turn_and_the_shortest_time_counts(file):
    times = {"a": iter([1.0, 1.0]), "b": iter([2.0, 0.5])}
    assert choose("a product", OPTIONS, lambda option: next(times[option]), passes=2) == "b"
