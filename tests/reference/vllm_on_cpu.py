"""vLLM's own Python code on a CPU, with a stand-in for each thing that isn't here. Imported by drivers only.

What runs is vLLM's: the reading of config.json, the lengths, the model classes, their layers, ropes and loading of
weights. What is stood in for is the server, the kernels and what several GPUs need. The transformers that vLLM
imports is this environment's.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers.utils import import_utils

#: Packages that vLLM imports and this environment doesn't have: the server's, formats of inputs, compiled code.
#: Nothing of them computes anything in a text model.
PACKAGES: Final = frozenset(
    {
        *("aiohttp", "blake3", "cachetools", "cbor2", "cloudpickle", "compressed_tensors", "cpuinfo", "einops"),
        *(
            "fastapi",
            "flashinfer",
            "mistral_common",
            "openai",
            "openai_harmony",
            "orjson",
            "prometheus_client",
            "pybase64",
            "pydantic",
            "pydantic_core",
        ),
        *("tiktoken", "torchvision", "uvloop", "xgrammar", "zmq"),
    }
)
#: Parts of vLLM that its models import on the way and that need such packages for more than a name: the server, the
#: transfer of caches between servers, AMD's kernels, and passes over compiled graphs.
SERVER: Final = (
    "vllm._aiter_ops",
    "vllm.compilation.passes",
    "vllm.distributed.kv_transfer",
    "vllm.entrypoints",
    "vllm.parser",
    "vllm.renderers",
)


class _Name(abc.ABCMeta):
    """A name out of a package that isn't there: enough to be imported, inherited from, annotated and decorated with."""

    def __getattr__(cls, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        decorates = len(arguments) == 1 and not named and callable(arguments[0])
        return arguments[0] if decorates else _Name(cls.__name__, (), {})

    def __getitem__(cls, _item: Any) -> _Name:
        return cls

    def __or__(cls, _other: Any) -> Any:
        return cls

    def __ror__(cls, _other: Any) -> Any:
        return cls


class _Package(types.ModuleType):
    """A package of such names, beside those that are given."""

    def __init__(self, name: str, **given: Any) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages above, before vLLM's own files are looked at."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        parts = fullname.split(".")
        absent = parts[0] in PACKAGES or any(".".join(parts[:end]) in SERVER for end in (2, 3))
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if absent else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Package(spec.name, **_PYDANTIC.get(spec.name, {}))

    def exec_module(self, _module: types.ModuleType) -> None:
        """There is nothing to run."""


def _field(default: Any = ..., **options: Any) -> Any:
    kept = {key: value for key, value in options.items() if key in ("default_factory", "init", "kw_only")}
    return dataclasses.field(**kept) if default is ... else dataclasses.field(default=default, **kept)


def _dataclass(cls: type | None = None, *, config: Any = None, **options: Any) -> Any:
    return dataclasses.dataclass(**options) if cls is None else dataclasses.dataclass(**options)(cls)


def _unchecked(*_fields: str, **_options: Any) -> Callable[[Any], Any]:
    return lambda function: function


#: Pydantic checks the settings of vLLM's configurations. Here they are dataclasses of the same fields and defaults.
_PYDANTIC: Final[Mapping[str, Mapping[str, Any]]] = {
    "pydantic": {
        "BaseModel": type("BaseModel", (), {}),
        "ConfigDict": dict,
        "Field": _field,
        "field_validator": _unchecked,
        "model_validator": _unchecked,
    },
    "pydantic.dataclasses": {"dataclass": _dataclass},
    "pydantic.fields": {"Field": _field, "FieldInfo": type("FieldInfo", (), {})},
}


def stand_in() -> None:
    """To be called once, before anything of vLLM is imported."""
    # Transformers looks for some of these packages as well and must not find them: it remembers what it found first.
    for name, is_there in vars(import_utils).items():
        if name.startswith("is_") and name.endswith("_available") and hasattr(is_there, "cache_info"):
            with contextlib.suppress(Exception):
                is_there()
    os.environ.update(
        VLLM_TARGET_DEVICE="cpu",
        VLLM_LOGGING_LEVEL="CRITICAL",
        HF_HUB_OFFLINE="1",
        # What our own serve command sets where a length is above the derived one.
        VLLM_ALLOW_LONG_MAX_MODEL_LEN="1",
    )
    sys.meta_path.insert(0, _Finder())
    torch.set_num_threads(1)
    parallel_state, registry = part("distributed.parallel_state"), part("model_executor.models.registry")
    # One process is every group of processes.
    devices = types.SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    alone = object.__new__(parallel_state.GroupCoordinator)
    alone.__dict__.update(world_size=1, rank_in_group=0, rank=0, local_rank=0, ranks=[0], device_group=devices)
    alone.__dict__.update(cpu_group=devices, device_communicator=None, use_custom_op_call=False, unique_name="alone")
    for name in ("_TP", "_PP", "_DP", "_EP", "_DCP", "_PCP", "_EPLB", "_WORLD"):
        if hasattr(parallel_state, name):
            setattr(parallel_state, name, alone)
    # Classes are looked at in a process of their own, for CUDA's sake, and what was seen is kept in the home folder.
    registry._run_in_subprocess = lambda function: function()
    registry._LazyRegisteredModel._load_modelinfo_from_cache = lambda *_arguments: None
    registry._LazyRegisteredModel._save_modelinfo_to_cache = lambda *_arguments: None


def part(name: str) -> Any:
    """One of vLLM's modules."""
    return importlib.import_module(f"vllm.{name}")


def with_defaults(cls: type, **given: Any) -> Any:
    """One of vLLM's configurations, without its constructor's search for devices, packages and files."""
    made: Any = object.__new__(cls)
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            made.__dict__[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            made.__dict__[field.name] = field.default_factory()
    made.__dict__.update(given)
    return made


def model_config(folder: Path) -> Any:
    """vLLM's reading of a config.json, as its ModelConfig goes about it."""
    settings, reading = part("config"), part("transformers_utils.config")
    read = reading.get_config(str(folder), trust_remote_code=False)
    made = with_defaults(
        settings.ModelConfig,
        model=str(folder),
        tokenizer=str(folder),
        hf_config=read,
        hf_text_config=reading.get_hf_text_config(read),
        dtype=torch.float32,
        runner_type="generate",
        convert_type="none",
        encoder_config=None,
        attention_chunk_size=getattr(read, "attention_chunk_size", None),
    )
    made._hf_config_revision = None
    made.model_arch_config = made.get_model_arch_config()
    made._model_info, made._architecture = made.registry.inspect_model_cls(made.architectures, made)
    if made._model_info.supports_multimodal:
        # An option of the server: towers for pictures and sound aren't built.
        made.multimodal_config = with_defaults(settings.MultiModalConfig, language_model_only=True)
    return made


def build(model: Any) -> Any:
    """The model class that vLLM's registry has for a config, built by vLLM's own loader."""
    configs, rotary_embedding = part("config"), part("model_executor.layers.rotary_embedding")
    settings = with_defaults(
        configs.VllmConfig,
        model_config=model,
        cache_config=with_defaults(configs.CacheConfig),
        parallel_config=with_defaults(configs.ParallelConfig),
        scheduler_config=with_defaults(configs.SchedulerConfig),
        # Layers whose kernels are compiled take their versions in torch.
        compilation_config=with_defaults(
            configs.CompilationConfig, custom_ops=["none"], mode=configs.CompilationMode.NONE, backend="eager"
        ),
        quant_config=None,
        lora_config=None,
    )
    own = part("model_executor.models.config").MODELS_CONFIG_MAP.get(model.architectures[0])
    if own is not None:
        own.verify_and_update_model_config(model)
    # It keeps ropes by their settings, among which the length served isn't.
    rotary_embedding._ROPE_DICT.clear()
    with configs.set_current_vllm_config(settings):
        return part("model_executor.model_loader.utils").initialize_model(settings)
