"""Progress of parts of a work, and the bar that shows it."""

from lit_gpt.evaluation.progress import ProgressBars, part_of


def test_parts_add_up():
    ticks = []
    for start, size, of in ((0, 100, 7), (100, 20, 20), (120, 0, 0)):
        part = part_of(lambda done, total: ticks.append((done, total)), start, size, 120)
        for done in range(of + 1):
            part(done, of)
    assert {total for _, total in ticks} == {120}
    done = [done for done, _ in ticks]
    assert done == sorted(done)
    assert done[-1] == 120


def test_a_long_measure_says_how_long(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 6.0, 7.0])
    monkeypatch.setattr("lit_gpt.evaluation.progress.monotonic", lambda: next(clock))
    bars = ProgressBars()
    progress = bars.start("measure 1")
    for done in (1, 2, 3):  # 6 seconds for 2 of 200: ten minutes
        progress(done, 200)
    bars.close()
    assert capsys.readouterr().err.count("about 10 minutes") == 1


def test_a_pipe_gets_lines(capsys):
    bars = ProgressBars()
    progress = bars.start("measure 1")
    for done in range(1, 201):
        progress(done, 200)
    for done in (201, 202):  # more than was estimated
        progress(done, done)
    bars.close()
    text = capsys.readouterr().err
    assert "\r" not in text
    assert "100%" in text
    assert len(text.splitlines()) == 1
