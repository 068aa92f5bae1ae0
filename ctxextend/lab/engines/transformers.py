"""The engine that everybody has: transformers, on the CPU, on one card, or sharded over several.

Text is read in chunks through a KV cache, and logits are made only where they are asked for, so that what
a measurement needs beside weights and cache doesn't grow with the length. What was read last is kept: a
text that begins alike is only read from where it differs.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ctxextend.errors import CheckpointError, RefusedError, UsageError
from ctxextend.lab.engines import kv
from ctxextend.lab.engines.base import EngineFacts, Usage
from ctxextend.lab.engines.host import first_line, peak_memory_bytes, require_modules, usable_device
from ctxextend.lab.engines.length_tables import LengthTables
from ctxextend.lab.engines.tokenizer import Tokenizer, read_json
from ctxextend.lab.memory import Attention, Widths, chunk_tokens, row_bytes, same_widths
from ctxextend.lab.names import NOT_CAUSAL

if TYPE_CHECKING:
    import numpy as np

    from ctxextend.lab.engines.base import LogProbs

_DTYPES: Final = ("float32", "bfloat16", "float16")


def load(
    folder: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    longest: int | None = None,
    trust_remote_code: bool = False,
) -> TransformersEngine:
    """The checkpoint in ``folder`` as its users load it, ready for ``longest`` tokens.

    ``device``: ``auto`` takes every CUDA device there is, else the CPU. ``dtype``: ``auto`` is the checkpoint's
    own on an accelerator and float32 on the CPU, which gains no speed from sixteen bits. Under torchrun the
    model is loaded tensor parallel.

    Raises :class:`MissingExtraError`, :class:`CheckpointError` for what transformers can't load,
    :class:`RefusedError` for code that nobody asked to run or too little memory.
    """
    require_modules("torch", "transformers", "accelerate")
    placed, shown = _place(device)
    known = ("auto", *_DTYPES)
    if dtype not in known:
        raise UsageError(
            "unknown data type", code="bad-dtype", key="--dtype", expected=" or ".join(known), found=repr(dtype)
        )
    if dtype == "auto":
        dtype = "float32" if shown.startswith("cpu") else "auto"
    with _quietly():
        config = _load_config(folder, trust_remote_code=trust_remote_code)
        # Before the weights: what is missing here is known at once.
        tokenizer = Tokenizer(folder, trust_remote_code=trust_remote_code)
        model = _load_model(folder, config, dtype=dtype, trust_remote_code=trust_remote_code, **placed)
    if model.device.type in ("cpu", "cuda"):
        kv.use_lean_attention(model)
    return TransformersEngine(model.eval(), tokenizer, longest=longest, device=shown)


def _place(device: str) -> tuple[dict[str, Any], str]:
    """What from_pretrained is told of the device, and how the device is shown."""
    placed = usable_device(device)
    import torch

    together = os.environ.get("WORLD_SIZE", "1")
    if int(together) > 1:
        from transformers.distributed import DistributedConfig

        kind = usable_device("auto")
        if placed != kind:
            raise UsageError(
                f"torchrun gives every process a part of the model, on {kind}",
                code="bad-option",
                key="--device",
                found=device,
                hint="leave --device away, or torchrun",
            )
        return {"distributed_config": DistributedConfig(tp_plan="auto")}, f"{kind}, tensor parallel over {together}"
    count = torch.cuda.device_count()
    if placed == "cuda" and count > 1:
        return {"device_map": "auto"}, f"{count} x cuda"
    if placed == "cpu":
        return {}, "cpu"
    return {"device_map": {"": placed}}, placed if placed.startswith("cuda") else f"{placed} (untested)"


def _load_config(folder: Path, *, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    stated = read_json(folder / "config.json")
    model_type = stated.get("model_type")
    if model_type not in CONFIG_MAPPING and not trust_remote_code:
        if stated.get("auto_map"):
            raise RefusedError(
                "this model brings code of its own, which isn't run unasked",
                code="remote-code",
                file=str(folder / "config.json"),
                key="auto_map",
                found=str(model_type),
                hint="read the code, then --trust-remote-code",
            )
        raise _unknown_type(folder, model_type)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _cannot_load(folder, error) from error


def _unknown_type(folder: Path, model_type: object) -> CheckpointError:
    import transformers

    return CheckpointError(
        f"transformers {transformers.__version__} has no language model of this type",
        code="unknown-model-type",
        file=str(folder / "config.json"),
        key="model_type",
        found=str(model_type),
        hint="pip install -U transformers, or another engine: --engine vllm",
    )


def require_class(config: Mapping[str, Any], *, file: str) -> None:
    """Raises :class:`RefusedError` for a type that transformers knows, but not as a model that goes on from a text."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    model_type = config.get("model_type")
    names = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    if model_type in CONFIG_MAPPING_NAMES and not any(model_type in each for each in names):
        raise _no_class(file, str(model_type))


def _no_class(file: str, model_type: str) -> RefusedError:
    import transformers

    return RefusedError(
        f"transformers {transformers.__version__} has no class for this type that predicts the next token",
        code=NOT_CAUSAL,
        file=file,
        key="model_type",
        expected="a type that AutoModelForCausalLM or AutoModelForImageTextToText loads",
        found=model_type,
        hint="measure it at the task that it was trained for; another engine may have such a class: --engine vllm",
    )


def _load_model(folder: Path, config: Any, *, dtype: str, trust_remote_code: bool, **placed: Any) -> Any:
    """The model, every weight found. Raises :class:`CheckpointError`, :class:`RefusedError`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    remote = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    classes = (AutoModelForCausalLM, AutoModelForImageTextToText)
    fitting = [auto for auto in classes if type(config) in auto._model_mapping]  # noqa: SLF001
    if getattr(config, "is_encoder_decoder", False) or (not fitting and not remote):
        raise _no_class(str(folder / "config.json"), config.model_type)
    _require_safetensors(folder)
    try:
        model, report = (AutoModelForCausalLM if remote else fitting[0]).from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            # Told below, by name, instead of by an exception that recommends this very option.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **placed,
        )
    except torch.OutOfMemoryError as error:
        raise _no_memory() from error
    except Exception as error:
        raise _cannot_load(folder, error) from error
    broken = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
    if broken:
        names = sorted(broken)
        raise CheckpointError(
            f"{len(names)} of the model's weights are missing or have another shape",
            code="broken-weights",
            file=str(folder),
            key=names[0],
            hint="ctxextend inspect shows what the files hold",
        )
    return model


def _require_safetensors(folder: Path) -> None:
    """Raises :class:`RefusedError` for weights that are pickled: to read a pickle can run any code."""
    pickled = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind))
    if pickled and not any(folder.glob("*.safetensors")):
        raise RefusedError(
            "these weights are pickled, and to read a pickle can run code that somebody put into it",
            code="pickled-weights",
            file=str(folder / pickled[0]),
            expected="safetensors",
            found=f"{len(pickled)} pickled file" + ("s" if len(pickled) > 1 else ""),
            hint="take the model's safetensors revision, have the Hub convert it "
            "(https://huggingface.co/spaces/safetensors/convert), or, of an author you trust, read each file with "
            "torch.load(FILE, weights_only=True) and write it with safetensors.torch.save_file",
        )


def _cannot_load(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"transformers can't load it: {first_line(error)}",
        code="cannot-load",
        file=str(folder),
        found=type(error).__name__,
        hint="ctxextend inspect shows what the files hold; another engine may read it: --engine vllm",
    )


def _no_memory() -> RefusedError:
    return RefusedError(
        "the device has run out of memory",
        code="not-enough-memory",
        hint="a shorter length, --dtype bfloat16, or --device cpu",
    )


class TransformersEngine:
    """One loaded model, and the cache of what it read last. See :class:`ctxextend.lab.engines.base.Engine`."""

    def __init__(self, model: Any, tokenizer: Tokenizer, *, longest: int | None, device: str) -> None:
        import inspect

        self.model = model
        self.tokenizer = tokenizer
        self._longest = longest
        self._device = device
        self._tables = LengthTables(model)
        self._cache: Any = None
        self._cache_tables: object = None
        self._read: list[int] = []
        self._tokens = 0
        self._seconds = 0.0
        self._limits_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.forget()

    @property
    def facts(self) -> EngineFacts:
        import transformers

        return EngineFacts(
            engine="transformers",
            version=transformers.__version__,
            device=self._device,
            dtype=str(self.model.dtype).removeprefix("torch."),
            vocabulary=self._vocabulary,
            context=None,
            opening=self.tokenizer.opening,
            weight_bytes=sum(weight.numel() * weight.element_size() for weight in self.model.parameters()),
            can=frozenset({"losses", "log_probs"}),
        )

    @property
    def usage(self) -> Usage:
        return Usage(tokens=self._tokens, seconds=self._seconds, peak_memory_bytes=_peak_memory(self.model.device))

    @property
    def cache_bytes(self) -> int:
        """What the cache takes now, the room not yet used included."""
        return 0 if self._cache is None else kv.size_bytes(self._cache)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

    def losses(self, tokens: Sequence[int], *, first: int = 1) -> list[float]:
        import torch
        from torch.nn.functional import cross_entropy

        _check_first(first)
        found: list[float] = []
        for logits in self._logits(tokens[:-1], first - 1):
            at = first + len(found)
            asked = torch.tensor(tokens[at : at + len(logits)], device=logits.device)
            found += cross_entropy(logits, asked, reduction="none").tolist()
        return found

    def log_probs(self, tokens: Sequence[int], *, first: int = 1) -> Iterator[LogProbs]:
        _check_first(first)
        for logits in self._logits(tokens[:-1], first - 1):
            yield _normalised(logits)

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        text, ends = list(tokens), self._ends()
        # One table for the whole answer: what dynamic scalings use at its end.
        length = len(tokens) + count
        for _ in range(count):
            (logits,) = self._logits(text, len(text) - 1, length=length)
            token = int(logits[-1].argmax())
            if token in ends:
                break
            text.append(token)
        return text[len(tokens) :]

    def forward_whole(self, tokens: Sequence[int], last: int) -> LogProbs:
        """The log-probabilities after each of the ``last`` tokens, from one plain forward without a cache."""
        self._tables.set_length(len(tokens))
        return _normalised(self._forward(tokens, None, keep=last))

    def forget(self) -> None:
        """Drop the cache, and put ropes that change with the length back to where they began."""
        self._cache, self._read = None, []
        self._tables.reset()

    def close(self) -> None:
        import torch

        self.forget()
        self.model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _vocabulary(self) -> int:
        return int(self.model.config.get_text_config(decoder=True).vocab_size)

    def _ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        texts = (self.model.generation_config, self.model.config, self.model.config.get_text_config(decoder=True))
        found: set[int] = set()
        for stated in (getattr(text, "eos_token_id", None) for text in texts):
            found.update(stated if isinstance(stated, list | tuple) else () if stated is None else (stated,))
        return frozenset(found)

    def _logits(self, tokens: Sequence[int], first: int, *, length: int | None = None) -> Iterator[Any]:
        """The float32 logits of positions ``first`` to the end, some positions at a time, (positions, vocabulary).

        ``length``: the one that ropes are to be set to which change with it; that of the tokens if None. What is
        kept is looked up at every step: another text may have been read since the last one.
        """
        text = list(tokens)
        if not 0 <= first < len(text):
            return
        reading, answering = self._chunks(length or len(text))
        position = first
        while position < len(text):
            start = self._keep(text, position, length or len(text))
            end = min(start + reading, position + answering, len(text))
            logits = self._forward(text[start:end], self._cache, keep=max(end - position, 1))
            self._read = text[:end]
            if end > position:
                yield logits[position - end :]
                position = end

    def _chunks(self, length: int) -> tuple[int, int]:
        """How many tokens are read at once where no logits are asked for, and where they are."""
        config = self.model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_attention_heads", None) or 1
        stated, on_cpu = config._attn_implementation, self.model.device.type == "cpu"  # noqa: SLF001
        attention: Attention = "lean" if stated == kv.LEAN else "eager" if stated == "eager" else "masked"
        even = same_widths(lambda key: getattr(config, key, None))
        widths = Widths(
            feed_forward=getattr(config, "intermediate_size", None) or config.hidden_size,
            vocabulary=self._vocabulary,
            expanded=0,
            row_bytes=row_bytes(attention, heads=heads, on_cpu=on_cpu, even=even),
        )
        reading, answering = (chunk_tokens(length, widths, answers=answers, on_cpu=on_cpu) for answers in (False, True))
        return reading if self._limits_logits else answering, answering

    def _keep(self, text: list[int], limit: int, length: int) -> int:
        """Cut what is kept to what ``text`` begins with, ``limit`` tokens at most; how many are left."""
        tables = self._tables.set_length(length)
        kept = _common(self._read, text, limit) if tables == self._cache_tables else 0
        if self._cache is None or not kv.crop(self._cache, kept, read=len(self._read)):
            self._cache = None
            self._cache = kv.preset_cache(self.model.config, longest=self._longest)
            kept = 0
        self._read, self._cache_tables = self._read[:kept], tables
        return kept

    def _forward(self, tokens: Sequence[int], cache: Any, *, keep: int) -> Any:
        """One forward: the float32 logits of the last ``keep`` positions, (keep, vocabulary)."""
        import torch

        start = time.perf_counter()
        options: dict[str, Any] = {"logits_to_keep": keep} if self._limits_logits else {}
        try:
            with torch.inference_mode():
                ids = torch.tensor([list(tokens)], device=self.model.device)
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **options)
                logits = output.logits[0, -keep:].float()
                if logits.is_cuda:
                    torch.cuda.synchronize(logits.device)
        except BaseException as error:
            # Some layers have these tokens and some don't.
            self.forget()
            if isinstance(error, torch.OutOfMemoryError):
                raise _no_memory() from error
            raise
        self._tokens += len(tokens)
        self._seconds += time.perf_counter() - start
        return logits


def variant(engine: TransformersEngine, config: Mapping[str, Any], *, longest: int | None = None) -> TransformersEngine:
    """The same weights, not copied, under another config.json, with a cache for ``longest`` tokens.

    Without ``longest`` the cache has as much room as the engine's own.

    The whole model is built anew, without weights, so that everything which the config decides when a model is
    made (tables, temperatures in a softmax scale) is as after from_pretrained.

    Raises :class:`RefusedError` for weights that aren't held as the config describes them (quantised, or split
    by tensor parallelism), :class:`CheckpointError` where the config is of another architecture.
    """
    import torch
    from accelerate import dispatch_model, init_empty_weights

    old = engine.model
    if getattr(old, "hf_quantizer", None) is not None or getattr(old, "_tp_size", None):
        raise RefusedError(
            "weights that are quantised or split can't be put under another config",
            code="no-variant",
            hint="ctxextend convert for each method, then ctxextend eval",
        )
    with _quietly(), init_empty_weights(include_buffers=False):
        made_of = type(old.config).from_dict(dict(config))
        made_of._attn_implementation = old.config._attn_implementation  # noqa: SLF001
        model = type(old)._from_config(made_of, dtype=old.dtype)  # noqa: SLF001
    try:
        model.load_state_dict(old.state_dict(), strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            "the weights don't fit this config", code="other-architecture", file="config.json", found=first_line(error)
        ) from error
    model.tie_weights()
    model.generation_config = old.generation_config
    places = getattr(old, "hf_device_map", None) or {}
    if len(set(places.values())) > 1:
        model = dispatch_model(model, device_map=places)
    else:
        with torch.inference_mode(mode=False):
            for module in model.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    setattr(module, name, buffer.to(old.device))
    room = engine._longest if longest is None else longest  # noqa: SLF001
    return TransformersEngine(model.eval(), engine.tokenizer, longest=room, device=engine._device)  # noqa: SLF001


def _check_first(first: int) -> None:
    if first < 1:
        raise ValueError("the first token is predicted from nothing")


def _common(one: list[int], other: list[int], limit: int) -> int:
    """How many tokens two texts begin with alike, ``limit`` at most."""
    count = min(len(one), len(other), limit)
    if one[:count] == other[:count]:
        return count
    return next(at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])


def _normalised(logits: Any) -> LogProbs:
    import torch

    with torch.inference_mode():
        found: np.ndarray[Any, np.dtype[np.float32]] = torch.log_softmax(logits, dim=-1).cpu().numpy()
    return found


def _peak_memory(device: Any) -> int | None:
    """The most that was allocated on the cards, or that the process has held on the CPU."""
    import torch

    if device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    return peak_memory_bytes()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars and reports, which what is raised here says better."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
