"""ocak: a self-hosted LLM inference server and gateway that keeps models warm.

`ocak.load` runs a model in this process. It is imported when it is first used, so that `import ocak` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ocak.offline.model import Model, Result, load

__version__ = "0.1.0"
__all__ = ["Model", "Result", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("ocak.offline.model"), name)
    raise AttributeError(f"module 'ocak' has no attribute {name!r}")
