"""Says which file is in the way where Python would import another `probes` than this program's.

`python -m` looks for modules in the working directory first: a user's `probes.py` there is found before the installed
package. Without this check the run ends in a traceback about "'probes' is not a package".
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pretrain
from pretrain.errors import ConfigError

PACKAGE = "probes"


def require_own_package() -> None:
    """Makes sure that `probes` is the package that was installed beside `pretrain`; imports nothing.

    Raises:
        ConfigError: another module or package has the name; names its file.
    """
    own = Path(pretrain.__file__).resolve().parents[1] / PACKAGE / "__init__.py"
    found = importlib.util.find_spec(PACKAGE)
    where = Path(found.origin).resolve() if found is not None and found.origin else None
    if where is None:
        raise ConfigError(f"The package {PACKAGE} is not installed beside pretrain ({own}). Install fineline again.")
    if where != own:
        raise ConfigError(
            f"{where} is in the way: Python would import it as {PACKAGE}, in place of this program's package ({own}). "
            "Start in another folder, rename the file, or set PYTHONSAFEPATH=1, with which Python does not look for "
            "modules in the working directory."
        )
