"""Cleaning: the steps that a recipe of `prepare` names, one topic a file.

Each step is a class whose keyword arguments are its options in the recipe (`step.py` says what a step is). The table
below is all that is imported here: a step's own libraries are loaded when a recipe uses it.
"""

STEPS: dict[str, str] = {
    "fix_encoding": "lit_gpt.data.cleaning.encoding:FixEncoding",
    "normalize": "lit_gpt.data.cleaning.normalize:Normalize",
    "language": "lit_gpt.data.cleaning.language:Language",
    "gopher_repetition": "lit_gpt.data.cleaning.gopher:GopherRepetition",
    "gopher_quality": "lit_gpt.data.cleaning.gopher:GopherQuality",
    "c4_quality": "lit_gpt.data.cleaning.c4:C4Quality",
    "fineweb_quality": "lit_gpt.data.cleaning.fineweb:FineWebQuality",
    "lines": "lit_gpt.data.cleaning.lines:Lines",
    "length": "lit_gpt.data.cleaning.length:Length",
    "predicate": "lit_gpt.data.cleaning.predicate:Predicate",
    "pii": "lit_gpt.data.cleaning.pii:PII",
    "exact_duplicates": "lit_gpt.data.cleaning.exact_duplicates:ExactDuplicates",
    "duplicate_lines": "lit_gpt.data.cleaning.duplicate_lines:DuplicateLines",
    "near_duplicates": "lit_gpt.data.cleaning.near_duplicates:NearDuplicates",
    "duplicate_substrings": "lit_gpt.data.cleaning.duplicate_substrings:DuplicateSubstrings",
    "decontaminate": "lit_gpt.data.cleaning.decontaminate:Decontaminate",
}
"""A step's name in the recipe → "module:Class"."""
