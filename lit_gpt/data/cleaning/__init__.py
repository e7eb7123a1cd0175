"""Cleaning filters and transforms that a recipe of `prepare` can name; the interface is defined in `base.py`.

`TRANSFORMS` is an open registry that maps a short name to the import path of a class, which is imported only when a
recipe uses it, so that a filter's libraries are loaded on demand. Another package adds its own with `TRANSFORMS["name"]
= "package.module.Class"`, or names the class by `class_path` in the recipe.
"""

from lit_gpt.data.cleaning.base import CorpusTransform, Doc, Pass, Rejected, Transform

__all__ = ["TRANSFORMS", "CorpusTransform", "Doc", "Pass", "Rejected", "Transform"]

TRANSFORMS: dict[str, str] = {
    "fix_encoding": "lit_gpt.data.cleaning.repair.FixEncoding",
    "normalize": "lit_gpt.data.cleaning.repair.Normalize",
    "language": "lit_gpt.data.cleaning.language.Language",
    "gopher_repetition": "lit_gpt.data.cleaning.quality.GopherRepetition",
    "gopher_quality": "lit_gpt.data.cleaning.quality.GopherQuality",
    "c4_quality": "lit_gpt.data.cleaning.quality.C4Quality",
    "fineweb_quality": "lit_gpt.data.cleaning.quality.FineWebQuality",
    "lines": "lit_gpt.data.cleaning.rules.Lines",
    "length": "lit_gpt.data.cleaning.rules.Length",
    "predicate": "lit_gpt.data.cleaning.rules.Predicate",
    "pii": "lit_gpt.data.cleaning.pii.PII",
    "exact_duplicates": "lit_gpt.data.cleaning.duplicates.ExactDuplicates",
    "duplicate_lines": "lit_gpt.data.cleaning.duplicate_passages.DuplicateLines",
    "near_duplicates": "lit_gpt.data.cleaning.near_duplicates.NearDuplicates",
    "duplicate_substrings": "lit_gpt.data.cleaning.duplicate_passages.DuplicateSubstrings",
    "decontaminate": "lit_gpt.data.cleaning.decontaminate.Decontaminate",
}
"""Maps short names in the recipe to import paths of `Transform` classes."""
