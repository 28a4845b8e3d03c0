"""Puts the built explorer into every wheel and source distribution made from a clone."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ExplorerBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the explorer, except for a source distribution, which contains it, and for an editable install.

        In an editable install `make explorer` builds it.
        """
        root = Path(self.root)
        came_built = (root / "PKG-INFO").is_file() and (
            root / "src/headwater/graphql/explorer/static/index.html"
        ).is_file()
        if version != "editable" and not came_built:
            self.app.display_info(explorer_build(root).build())


def explorer_build(root: Path) -> ModuleType:
    """Load `explorer/build.py` by its path, since `build` is also the name of a well-known package."""
    spec = importlib.util.spec_from_file_location("headwater_explorer_build", root / "explorer" / "build.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(root / "explorer" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
