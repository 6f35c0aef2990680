"""Distil, prune, quantize and measure image classifiers; the shipped artifact is ONNX.

`compress.run(recipe)` is the whole chain; the steps are modules of their own. Importing this package imports nothing
heavy.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from compress.pipeline import run
    from compress.recipe import Recipe

__all__ = ["Recipe", "__version__", "run"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `compress --help` must not wait for it
    if name == "run":
        from compress.pipeline import run

        return run
    if name == "Recipe":
        from compress.recipe import Recipe

        return Recipe
    raise AttributeError(f"module 'compress' has no attribute '{name}'")
