"""From raw documents to clean, tokenised shards: what `python -m lit_gpt prepare` runs.

In stages: the recipe names sources and steps (`recipe.py`); the sources are cut into parts and read into shards of
documents (`parts.py`, `reading.py`); neighbouring steps run over these shards in one pass, and a step that must see all
documents first runs its own stages before (`segments.py`); what remains is tokenised into a `TokenCorpus`
(`tokenise.py`); and the card tells what was thrown away and why (`lit_gpt/data/card`).

datatrove is the engine: each pass is a datatrove pipeline, so one recipe runs in this process, over local workers, on
Slurm or on Ray. How many tasks a pass has depends on the input alone, and each task writes its files whole or not at
all: the bytes are the same for any number of workers and after any number of kills.
"""
