"""Show what the model sees: windows of tokens with their documents, masks and sources, from a batch and a tokenizer.

`view` extracts the windows of a batch, `terminal` and `page` render them. They depend only on the fields of `Batch`, so
they work for the batches of any DataModule.
"""
