"""The list of public names in the documentation is true."""

import importlib
import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs/pages/reference/public-names.md").read_text()
LINES = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()


def test_every_public_name_exists_and_is_described():
    assert len(LINES) > 20
    for line in LINES:
        name, *members = line.split()
        room, _, public = name.rpartition(".")
        found = getattr(importlib.import_module(room), public)
        assert found.__doc__, f"{name} has no docstring"
        if public == "GPTModule":
            found = found(overrides={"n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 300})
        for member in members:
            assert hasattr(found, member) or member in getattr(found, "__annotations__", {}), f"{name}.{member}"
