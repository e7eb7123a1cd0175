"""Other installed packages that add something to ours: layers, model families, and whatever else is registered.

A package names the module that registers its additions as an entry point of the group `lit_gpt.extensions`:

    [project.entry-points."lit_gpt.extensions"]
    acme = "acme_lm.layers"

The module is imported when a name is looked up that nobody has registered yet (a layer in a checkpoint's config, for
instance), so that `evaluate` or `serve` find it without naming the package. Only installed packages are considered: a
file that is read never decides which code runs.
"""

import functools
from importlib.metadata import entry_points

GROUP = "lit_gpt.extensions"


@functools.cache
def load_extensions() -> None:
    """Import every registered extension module, once a process.

    Raises:
        ImportError: If an installed extension cannot be imported.
    """
    for entry in entry_points(group=GROUP):
        entry.load()
