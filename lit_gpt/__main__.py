"""`python -m lit_gpt` and the console script `lit-gpt`."""

import sys

from lit_gpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
