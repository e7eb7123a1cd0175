"""Makes the small models of this folder importable from the tests below it."""
