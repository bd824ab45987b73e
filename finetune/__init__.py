"""One short script for each method; nobody imports a script."""

from importlib.util import find_spec
from pathlib import Path
from shlex import quote

_ROOT = Path(__file__).resolve().parents[1]
for _name in ("data", "pipelines"):  # common names: another package of the same name may come first on the path
    _found = find_spec(_name)
    _folder = Path(_found.origin).resolve().parent if _found is not None and _found.origin is not None else None
    if _folder != _ROOT / _name:
        raise ImportError(
            f"the package {_name!r} is found in {_folder}, expected {_ROOT / _name}. "
            f"Uninstall or rename the other package, or install this project: pip install -e {quote(str(_ROOT))}"
        )
