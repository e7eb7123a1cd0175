"""What a run needs and what a machine gives, in numbers."""
