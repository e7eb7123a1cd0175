"""The pair of models that a test of one variant compares."""

import pytest
from pairs import Pair, build_theirs, make_pair

_PAIRS: dict[tuple[str, str], Pair] = {}


@pytest.fixture
def pair(family, variant, tmp_path_factory) -> Pair:
    """The pair of one variant, made once and left as it is by every test."""
    if (family, variant) not in _PAIRS:
        _PAIRS[family, variant] = make_pair(build_theirs(family, variant), tmp_path_factory.mktemp(family) / "theirs")
    return _PAIRS[family, variant]
