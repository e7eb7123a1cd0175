"""lit_gpt: the whole life of a language model as PyTorch Lightning plugins."""

__version__ = "0.1.0"
