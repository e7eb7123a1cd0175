"""The pipeline of `python -m lit_gpt prepare`: from raw documents to clean, tokenized shards.

In stages: the recipe names sources and transforms (`recipe.py`); the sources are divided into parts and read into
shards of documents (`parts.py`, `reading.py`); consecutive transforms run over these shards in one pass, and one that
must see all documents runs its own passes first (`segments.py`); the result is tokenized into a `TokenCorpus`
(`tokenise.py`); and the data card reports what was dropped and why (`lit_gpt/data/card.py`).

It is built on datatrove: each pass is a datatrove pipeline, so a recipe can run in this process, in local workers, on
Slurm or on Ray. The number of tasks of a pass depends only on the input, and each task writes its files atomically, so
the output is the same for any number of workers and after any number of interruptions.
"""
