"""Safety: what a model remembers of its training, and how it behaves."""
