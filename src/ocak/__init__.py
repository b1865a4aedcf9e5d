"""ocak: a self-hosted LLM inference server and gateway that keeps models warm.

`ocak.load` runs a model in this process. It is imported at its first use, so that `import ocak` costs nothing.
"""

TYPE_CHECKING = False  # type checkers take it for true; `typing` is slow to import
if TYPE_CHECKING:
    from ocak.offline.model import Model, Result, load

__version__ = "0.1.0"
__all__ = ["Model", "Result", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'ocak' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("ocak.offline.model"), name)
