"""SGLang's own modules in a process without a GPU and without what its wheel requires.

Everything that reads a config, makes a rope, loads weights or computes a layer is SGLang's. Stood in for are
packages that aren't installed (servers, parsers, compiled kernels): a name in them can be imported, subclassed and
used as a decorator, and a stand-in that is given a tensor raises, so that none of them can compute anything.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import pickle
import sys
import types
from collections.abc import Iterator, MutableSequence
from pathlib import Path
from typing import Any, Final

import torch

#: What SGLang's modules import and this environment hasn't: none of it takes part in a rope, a linear layer or a norm.
STOOD_IN: Final = frozenset(
    {
        # The server and its protocols.
        *("IPython", "aiohttp", "fastapi", "openai", "orjson", "partial_json_parser", "pybase64", "pydantic"),
        *("pydantic_core", "setproctitle", "starlette", "uvicorn", "zmq"),
        # Kernels, compiled or compiled when they are called.
        *("cutlass", "sgl_kernel", "triton", "tvm_ffi"),
        # Quantization, pictures and sounds.
        *("compressed_tensors", "einops", "torchaudio", "torchvision"),
    }
)


class _AnyName(type):
    """Of a class that is stood in for, every attribute exists: members of an enumeration are dictionaries' keys."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(f"{cls.__name__}.{name}")

    def __getitem__(cls, item: object) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


class _AnyClass(metaclass=_AnyName):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __init_subclass__(cls, **named: Any) -> None:
        pass


class StandIn(types.ModuleType):
    """A module, function or decorator of a package that isn't here; it computes nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: MutableSequence[str] = []
        self.__file__ = None

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return "0"
        if name.startswith("__"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        found = sys.modules.get(full)
        if found is None:
            found = _AnyName(name, (_AnyClass,), {}) if name[0].isupper() else StandIn(full)  # type: ignore[assignment]
        setattr(self, name, found)
        return found

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if any(isinstance(value, torch.Tensor) for value in (*arguments, *named.values())):
            raise NotImplementedError(f"{self.__name__} isn't here")
        if len(arguments) == 1 and callable(arguments[0]) and not named:
            return arguments[0]
        return lambda decorated: decorated

    def __or__(self, other: Any) -> Any:
        return other

    def __ror__(self, other: Any) -> Any:
        return other


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last finder asked: what is installed is never stood in for."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in STOOD_IN:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Operators:
    """What the compiled sgl_kernel registers: operators for CPUs are looked up when modules are imported."""

    def __getattr__(self, name: str) -> Any:
        if not name.endswith("_cpu"):
            raise AttributeError(name)
        return StandIn(f"torch.ops.sgl_kernel.{name}")


def _rearranged(tensor: torch.Tensor, pattern: str) -> torch.Tensor:
    """All that is computed with einops here: positions as one row (Gemma 3)."""
    if pattern != "s -> 1 s":
        raise NotImplementedError(f"einops isn't here: {pattern}")
    return tensor[None]


def _uncompiled(function: Any = None, **_options: Any) -> Any:
    return (lambda decorated: decorated) if function is None else function


def start(config: Path) -> None:
    """One process of one rank, as its launcher makes it on a CPU, by any config.json in the folder ``config``."""
    # SGLang's own switch for machines without a GPU, and its own switch to the torch code of every operator.
    os.environ |= {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_FORCE_FUSED_OP_BACKEND": "torch"}
    sys.meta_path.append(_Finder())
    # Compiling needs a compiler and changes nothing: the functions run as they are written.
    setattr(torch, "compile", _uncompiled)  # noqa: B010
    setattr(torch.ops, "sgl_kernel", _Operators())  # noqa: B010
    # A class is pickled when its module is imported, and never read.
    sys.modules["dill"] = pickle
    setattr(importlib.import_module("einops"), "rearrange", _rearranged)  # noqa: B010
    # Where the sources of kernels lie that are compiled when called: not among the Python modules.
    paths = types.ModuleType("sglang.kernels.jit.utils.compile.paths")
    vars(paths).update(KERNEL_PATH=Path(), DEFAULT_INCLUDE=[], DEFAULT_CFLAGS=[], DEFAULT_LDFLAGS=[])
    sys.modules[paths.__name__] = paths

    context, state = module("runtime_context"), module("distributed.parallel_state")
    arguments = module("server_args").ServerArgs(model_path=str(config), device="cpu")
    context.publish(arguments, role="test", ranks=context.SpawnRanks(world_rank=0))
    state.init_distributed_environment(
        world_size=1, rank=0, local_rank=0, backend="gloo", distributed_init_method=(config / "store").as_uri()
    )
    state.initialize_model_parallel(backend="gloo")


def module(name: str) -> Any:
    """One of the modules below ``sglang.srt``."""
    return importlib.import_module(f"sglang.srt.{name}")


def built(config: Any) -> Any:
    """The model that SGLang's registry has for a config of its own reading."""
    (architecture,) = config.hf_config.architectures
    models = module("models.registry").ModelRegistry.models
    file = entry_module(architecture)
    if file is not None and architecture not in models:
        # What the registry finds too, after importing every model file.
        models[architecture] = getattr(module(f"models.{file}"), architecture)
    found, _name = module("model_loader.utils").get_model_architecture(config)
    return constructed(found, config.hf_config)


def constructed(found: Any, config: Any) -> Any:
    """A model of a class. On a CPU latent attention has a rope of its own, for yarn alone; here it is the GPUs'."""
    with torch.no_grad(), module("runtime_context").get_device().override(device="cuda"):
        return found(config=config)


def entry_module(architecture: str) -> str | None:
    """The model file with a class for an architecture, by the list at its end, without importing all of them."""
    for file in sorted(Path(module("models").__path__[0]).glob("*.py")):
        entries = file.read_text(encoding="utf-8").partition("\nEntryClass")[2]
        if architecture in entries.translate(str.maketrans("=[],:", "     ")).split():
            return file.stem
    return None
