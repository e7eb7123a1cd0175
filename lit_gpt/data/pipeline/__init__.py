"""From raw documents to clean, tokenised shards: what `python -m lit_gpt prepare` runs.

In stages: the recipe names sources and transforms (`recipe.py`); the sources are cut into parts and read into shards of
documents (`parts.py`, `reading.py`); consecutive transforms run over these shards in one pass, and one that must see
all documents runs its own passes first (`segments.py`); what remains is tokenised into a `TokenCorpus` (`tokenise.py`);
and the data card reports what was dropped and why (`lit_gpt/data/card.py`).

datatrove is the engine: each pass is a datatrove pipeline, so one recipe runs in this process, over local workers, on
Slurm or on Ray. How many tasks a pass has depends on the input alone, and each task writes its files
atomically: the bytes are the same for any number of workers and after any number of kills.
"""
