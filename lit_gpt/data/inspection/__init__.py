"""What the model sees, made visible: a batch and a tokenizer → windows of tokens with documents, masks and sources.

`view` reads batches, `terminal` and `page` draw what it found. They know the fields of `Batch` and nothing about who
made it, so that they show the batches of any DataModule.
"""
