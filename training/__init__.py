"""Trains the checkpoint of this repository from nothing; see README.md beside this file."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("internvl_chat") is None:
    # Not installed, as on a machine that only trains: the repository's root is the package.
    _root = Path(__file__).resolve().parent.parent
    _spec = importlib.util.spec_from_file_location(
        "internvl_chat", _root / "__init__.py", submodule_search_locations=[str(_root)]
    )
    sys.modules["internvl_chat"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["internvl_chat"])
