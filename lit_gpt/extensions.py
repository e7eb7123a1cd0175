"""Extensions: installed packages that register layers, model families and other components with this package.

A package names the module that registers its additions as an entry point of the group `lit_gpt.extensions`:

    [project.entry-points."lit_gpt.extensions"]
    acme = "acme_lm.layers"

The module is imported when a name is looked up that is not registered yet (for example, a layer in a checkpoint's
config), so that `evaluate` or `serve` find it without naming the package. Modules that are not installed, such as
`my_project.py` in the working directory, are listed in the environment: `LIT_GPT_EXTENSIONS=my_project` (separated by
commas). Nothing else is imported: a file that is read never decides which code runs.
"""

import functools
import importlib
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

from lit_gpt.errors import UserError

GROUP = "lit_gpt.extensions"
VARIABLE = "LIT_GPT_EXTENSIONS"


@functools.cache
def load_extensions() -> None:
    """Import every registered extension module and those listed in the environment, once per process.

    Raises:
        UserError: If an extension cannot be imported, or a module listed in the environment does not exist.
    """
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # the package is another's: its user can update or remove it
            package = entry.dist.name if entry.dist is not None else entry.name
            raise UserError(
                f"the extension {entry.name} = {entry.value} of the installed package {package} cannot be loaded "
                f"({type(error).__name__}: {error}); update it, or remove it with pip uninstall {package}"
            ) from error
    for name in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and f"{name}.".startswith(f"{error.name}."):
                raise UserError(
                    f"{VARIABLE} lists the module {name!r}, which does not exist; is its folder on PYTHONPATH?"
                ) from error
            raise


def class_path(kind: type) -> str:
    """Return the path by which another process can import a class; for a script, the module is the script's name."""
    module = _main_name() if kind.__module__ == "__main__" else kind.__module__
    return f"{module}.{kind.__qualname__}"


def imported_class(path: str) -> type | None:
    """Return the class of a `class_path` if its module is imported, an extension, or the running script."""
    load_extensions()
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get("__main__" if module == _main_name() else module), name, None)
    return found if isinstance(found, type) else None


def how_to_import(path: str) -> str:
    """Return the second half of an error message for a class that is not imported, with the remedy."""
    module = path.rpartition(".")[0]
    if module == "__main__" or "<locals>" in path:
        return "which no other process can import; move the class to the top of a module, and train there"
    return (
        f"which is not imported; set {VARIABLE}={module} (a module on PYTHONPATH or in the working directory), or in "
        "Python, import it first"
    )


def _main_name() -> str:
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name if spec is not None else "__main__" if file is None else Path(file).stem
