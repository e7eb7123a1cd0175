"""From raw text to batches, in plain Python, numpy and torch: no Trainer is needed for any of it.

The way of a document: `sources` yields it, `split` gives it to train, val or test by its hash, `tokenizers` turns it
into ids, `prepare` writes these to token shards (`shards`), `sampler` chooses windows of them by a pure function
of (seed, position), and `loader` hands out batches whose place in the global order can be saved and restored.
"""
