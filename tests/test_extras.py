"""Libraries that are missing, and files of a user that hide one."""

import importlib
import sys

import pytest

from lit_gpt.errors import UserError
from lit_gpt.extras import need


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(UserError, match=r"no_such_library.*pip install -e '.\[serve\]'"):
        need("no_such_library", "serve", "serve")


def test_a_file_that_hides_a_module_of_python_is_named(monkeypatch, tmp_path):
    """A user's http.py in the working folder: `import http.client` fails inside a library that is installed."""
    hiding = type(sys)("http")
    hiding.__file__ = str(tmp_path / "http.py")
    monkeypatch.setitem(sys.modules, "http", hiding)

    def fail(name):
        raise ModuleNotFoundError("No module named 'http.client'; 'http' is not a package", name="http.client")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"http\.py"):
        need("uvicorn", "serve", "serve")
