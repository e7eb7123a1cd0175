"""Models on disk: checkpoints, bundles and Hugging Face folders, whole or absent and read as data alone."""
