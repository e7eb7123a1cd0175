"""Safety: what a model memorised of its training text, and how it behaves."""
