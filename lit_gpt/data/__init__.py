"""From raw text to batches in plain Python, numpy and torch; no Trainer is needed.

The path of a document: `sources` yields it, `split` assigns it to train, val or test by its hash, `tokenizers` encodes
it to ids, `prepare` writes these to token shards (`shards`), `sampler` chooses windows of them by a pure function of
(seed, position), and `loader` yields batches whose position in the global order can be saved and restored.
"""
