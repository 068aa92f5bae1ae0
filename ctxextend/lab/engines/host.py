"""What this process has to run a model with: modules, devices, memory."""

from __future__ import annotations

import importlib.util
import sys

from ctxextend.errors import MissingExtraError, UsageError


def require_modules(*modules: str) -> None:
    """Raises :class:`MissingExtraError` for a module of the lab that isn't installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module, "lab")


def usable_device(name: str) -> str:
    """The torch device that ``name`` stands for: ``auto`` is ``cuda`` where there is one, else ``cpu``.

    Raises :class:`UsageError` for one that torch can't keep a number on, and read it back.
    """
    if name == "cpu":
        return name
    require_modules("torch")
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
        on_cpu = torch.device(name).type == "cpu"
    except Exception as error:
        # Each backend fails in its own way: RuntimeError, AssertionError, ImportError.
        raise UsageError(
            f"torch can't use this device: {first_line(error)}",
            code="bad-device",
            key="--device",
            found=name,
            hint="--device auto",
        ) from error
    return "cpu" if on_cpu else name


def peak_memory_bytes() -> int | None:
    """The most that this process has had in memory; None where the system doesn't tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def first_line(error: BaseException) -> str:
    """What an error of another library says, on one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
