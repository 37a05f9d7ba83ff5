"""What `from probes import curves` is, whatever modules stand beside it."""

import importlib
import pkgutil
import subprocess
import sys
import types

from probes import curves


def test_every_public_name_is_there_and_documented():
    assert {"load", "predict", "state", "trust", "fit", "compare"} <= set(curves.__all__)
    for name in curves.__all__:
        assert getattr(curves, name).__doc__, name


def test_no_module_of_the_package_hides_a_function_of_the_same_name():
    for module in pkgutil.walk_packages(curves.__path__, "probes.curves."):
        importlib.import_module(module.name)
    for name in curves.__all__:
        assert not isinstance(getattr(curves, name), types.ModuleType), f"a module named {name} hides the function"


def test_importing_it_loads_nothing_heavy():
    heavy = ("matplotlib", "pandas", "scipy", "numpy", "pyarrow", "torch", "plotly")
    asked = f"import sys; from probes import curves; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
