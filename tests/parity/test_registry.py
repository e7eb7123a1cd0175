"""A family that is named anywhere is known everywhere."""

from pathlib import Path

from pairs import variants_of

from lit_gpt.models import get_preset, preset_names
from lit_gpt.models.families import family_names, model_types

FAMILIES_PAGE = (Path(__file__).parents[2] / "docs/pages/reference/families.md").read_text()


def test_every_family_is_mapped_and_has_variants():
    assert len(model_types()) == len(family_names())
    for family in family_names():
        module = variants_of(family)
        assert len(module.VARIANTS) >= 2, family


def test_every_preset_belongs_to_a_family():
    without = set(family_names()) - {get_preset(name).family for name in preset_names()}
    # their published values were not at hand
    assert without == {"granite_swa", "ministral"}


def test_the_documentation_names_every_family_and_preset():
    for model_type in model_types():
        assert f"`{model_type}`" in FAMILIES_PAGE
    for name in preset_names():
        # `pythia-70m` `-160m`: a table's cell names the series once
        assert f"`{name}`" in FAMILIES_PAGE or any(
            f"`{name[i:]}`" in FAMILIES_PAGE for i, letter in enumerate(name) if letter == "-"
        ), name
