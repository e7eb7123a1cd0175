"""Safety measures: what a model memorized of its training text, and how it behaves."""
