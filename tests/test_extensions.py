"""Extensions of other packages: one that fails is named with what to do about it."""

from importlib.metadata import EntryPoint

import pytest

from lit_gpt import extensions
from lit_gpt.errors import UserError
from lit_gpt.extensions import load_extensions


def test_an_extension_that_cannot_be_imported_is_named(monkeypatch):
    entry = EntryPoint("acme", "acme_lm.nothere", extensions.GROUP)
    monkeypatch.setattr(extensions, "entry_points", lambda group: [entry])
    load_extensions.cache_clear()
    with pytest.raises(UserError, match=r"acme_lm\.nothere.*pip uninstall acme"):
        load_extensions()
    load_extensions.cache_clear()
