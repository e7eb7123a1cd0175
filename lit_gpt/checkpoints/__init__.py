"""Models on disk: checkpoints, bundles and Hugging Face folders, written atomically and read without executing code."""
