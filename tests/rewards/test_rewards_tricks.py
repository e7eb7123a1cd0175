"""Functions that look busy and do nothing: what reinforcement learning finds first, and none of it pays."""

import ast

import pytest

from configs.grpo.python_rewards import PythonFunction, UsesArguments, live_body
from lit_gpt.data.instructions.stdlib import StdlibInstructions
from lit_gpt.data.records import BadInput
from lit_gpt.rewards import ExactAnswer, Sample

SIGNATURE = "def f(a, b):"
TRICKS = {
    "a stub": "raise NotImplementedError",
    "a stub that names its arguments": "raise NotImplementedError(a, b)",
    "a number below zero": "return -1",
    "constants computed with": "return 1 + 1",
    "a text of nothing": "return ''.join([])",
    "a text": "return f'x'",
    "a dead store": "_ = a, b\nreturn 0",
    "a chain of dead stores": "x = a\ny = x + b\nz: int = y\nz += 1",
    "a dead unpacking": "(x, *y), z = a, b",
    "a dead inner function": "def g():\n    return a + b\nreturn 0",
    "a dead lambda": "x = lambda: a + b",
    "a dead class": "class X:\n    y = a + b",
    "a dead import": "import os",
    "a branch never taken": "if False:\n    return a + b\nreturn 0",
    "the other branch never taken": "if 1:\n    return 0\nelse:\n    return a + b",
    "a loop never entered": "while 0:\n    print(a, b)",
    "a loop over nothing": "for i in []:\n    print(a, b)\nreturn 0",
    "an operand never reached": "return 0 and (a, b)",
    "a choice never made": "return None if True else a + b",
    "an assertion that always holds": "assert True or (a, b)",
    "conditions of nothing": "if a:\n    pass\nelif b:\n    b\nreturn 0",
    "a try of nothing": "try:\n    pass\nexcept Exception:\n    print(a, b)",
    "names deleted": "del a, b",
    "a walrus": "(x := a)\n(y := b)",
    "an annotation": "x: int",
}
BUSY = {
    "a branch": "if a:\n    return b\nreturn None",
    "a store that is read": "x = a\nreturn x + b",
    "an inner function that is called": "def g():\n    return a + b\nreturn g()",
    "an argument changed in place": "a += b",
    "an attribute": "a.x = b",
    "an item": "a[0] = b",
    "a name of the module": "global count\ncount = a + b",
    "a call whose result nobody wants": "_ = a.append(b)",
    "a guard": "if not a:\n    raise ValueError(b)",
    "a loop": "for i in a:\n    b.append(i)",
    "an endless loop": "while True:\n    a.step(b)",
    "a try": "try:\n    return a[b]\nexcept KeyError:\n    return None",
    "a class that is returned": "class C:\n    def g(self):\n        return a + b\nreturn C",
    "a decorated inner function": "@a.route(b)\ndef g():\n    pass",
    "a generator": "yield a\nyield b",
    "an import that is used": "import math\nreturn math.hypot(a, b)",
}


def sample(body):
    lines = "".join(f"\n    {line}" for line in body.split("\n"))
    return Sample([], SIGNATURE + lines, {"signature": SIGNATURE})


@pytest.mark.parametrize("body", TRICKS.values(), ids=TRICKS)
def test_a_trick_does_not_pay(body):
    ast.parse(sample(body).completion)
    assert PythonFunction()(sample(body)) == 0
    assert UsesArguments()(sample(body)) == 0


@pytest.mark.parametrize("body", BUSY.values(), ids=BUSY)
def test_honest_work_pays(body):
    assert PythonFunction()(sample(body)) == 1
    assert UsesArguments()(sample(body)) == 1


def test_what_is_left_of_a_function():
    source = "def f(a):\n    if a:\n        pass\n        g()\n    else:\n        x = 1\n    try:\n        return 1\n    finally:\n        2"
    function = ast.parse(source).body[0]
    before = ast.dump(function)
    left = [ast.unparse(ast.fix_missing_locations(statement)) for statement in live_body(function)]
    assert left == ["if a:\n    g()", "try:\n    return 1"]
    assert ast.dump(function) == before


def test_a_long_chain_of_branches_counts_as_nothing_rather_than_failing():
    chain = "if a == 0:\n    return 0\n" + "".join(f"elif a == {n}:\n    return {n}\n" for n in range(1, 3000))
    assert PythonFunction()(sample(chain.rstrip())) in (0, 1)


def test_functions_that_people_wrote_are_not_taken_for_tricks():
    rows = [row for _, row in zip(range(1500), StdlibInstructions(max_lines=20).records(BadInput()), strict=False)]
    paid = [PythonFunction()(Sample([], row.values["completion"])) for row in rows]
    assert sum(paid) > 0.85 * len(rows)  # the rest are stubs, and bare returns


@pytest.mark.parametrize("needs_marker", [True, False])
def test_an_answer_that_is_not_there_cannot_be_met(needs_marker):
    with pytest.raises(ValueError, match="'answer' contains no answer"):
        ExactAnswer(needs_marker=needs_marker)(Sample([], "####", {"answer": "steps\n#### "}))
