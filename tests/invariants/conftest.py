"""Fixtures that run the real command line."""

import pytest
from command_runs import Runs


@pytest.fixture
def runs(tmp_path):
    """A folder with a small corpus."""
    return Runs(tmp_path)


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory):
    """The same for the tests of one file together, which may then compare with one reference run."""
    return Runs(tmp_path_factory.mktemp("runs"))
