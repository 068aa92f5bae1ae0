"""What a loaded model really turns its heads by, read off the model itself and held to what was planned.

The numbers come from the cosines and sines that a rotary module returns, not from its attributes: whatever a
class ignores, overwrites or rounds is in them. An angle at position 1 is its frequency, and the cosine at
position 0 is the temperature; both in float32, so good to 1e-7.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from msgspec import Struct

from ctxextend.rope import RopeTable

#: How far frequencies may be off, relatively, and temperatures: what float32 leaves.
FREQUENCY_TOLERANCE: Final = 1e-5
FACTOR_TOLERANCE: Final = 1e-6


class InsideRope(Struct, frozen=True, kw_only=True):
    """A rope of a loaded model. ``label``: the layer type, "" for the only one. Fields else as in RopeTable.

    ``dtypes``: of the buffers that hold its frequencies, such as ``float32``.
    """

    label: str
    inv_freq: tuple[float, ...]
    attention_factor: float
    softmax_factor: float
    dtypes: tuple[str, ...]


class InsideFinding(Struct, frozen=True, kw_only=True):
    """How far a loaded rope is from the planned table: relative errors, infinite where there is no such rope."""

    label: str
    inv_freq_error: float
    attention_factor_error: float
    softmax_factor_error: float
    ok: bool
    detail: str


def ropes_inside(model: Any, *, length: int) -> tuple[InsideRope, ...]:
    """The ropes of a transformers model's text side, as it turns a text of ``length`` tokens; none where it has none.

    Leaves the model as it was. A dynamic table doesn't shrink by itself: an engine that has read something longer
    has to ``forget`` it first.
    """
    import torch

    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    modules = {name: module for name, module in text.named_modules() if list(_labels(module))}
    # Where the model hands cosines down to its layers, modules of the layers' own aren't used.
    shared = {name: module for name, module in modules.items() if "layers." not in name}
    softmax = _softmax_factor(text)
    found: list[InsideRope] = []
    with torch.inference_mode():
        for module in (shared or modules).values():
            with _untouched(module):
                for label in _labels(module):
                    inv_freq, attention = _turned(module, label, length)
                    found.append(
                        InsideRope(
                            label=label,
                            inv_freq=inv_freq,
                            attention_factor=attention,
                            softmax_factor=softmax,
                            dtypes=_dtypes(module, label),
                        )
                    )
        found += _fixed_tables(text)
    return tuple(dict.fromkeys(found))


def compare_inside(ropes: Sequence[InsideRope], tables: Mapping[str, RopeTable]) -> tuple[InsideFinding, ...]:
    """Each planned table, by layer type, against the ropes that serve it; the worst of several.

    A rope without a label serves every layer type; a lone table is that of every rope.
    """
    findings = []
    for label, table in tables.items():
        serving = [rope for rope in ropes if rope.label == label] or [rope for rope in ropes if not rope.label]
        if not serving and len(tables) == 1:
            serving = list(ropes)
        if not serving:
            findings.append(_finding(label, (math.inf, math.inf, math.inf), ("the loaded model has no such rope",)))
            continue
        each = [_compare(label, rope, table) for rope in serving]
        findings.append(min(each, key=lambda finding: (finding.ok, -finding.inv_freq_error)))
    return tuple(findings)


def _compare(label: str, rope: InsideRope, table: RopeTable) -> InsideFinding:
    frequencies = RopeTable(inv_freq=rope.inv_freq).error_against(table)
    attention = abs(rope.attention_factor / table.attention_factor - 1.0)
    softmax = abs(rope.softmax_factor / table.softmax_factor - 1.0)
    faults = []
    if len(rope.inv_freq) != len(table.inv_freq):
        faults.append(f"{len(rope.inv_freq)} frequencies instead of {len(table.inv_freq)}")
    elif not frequencies <= FREQUENCY_TOLERANCE:
        faults.append(f"frequencies are off by up to {frequencies:.2g}")
    if not attention <= FACTOR_TOLERANCE:
        faults.append(f"attention factor {rope.attention_factor:.6g} instead of {table.attention_factor:.6g}")
    if not softmax <= FACTOR_TOLERANCE:
        faults.append(f"softmax factor {rope.softmax_factor:.6g} instead of {table.softmax_factor:.6g}")
    if any(dtype != "float32" for dtype in rope.dtypes):
        faults.append(f"its buffers are {', '.join(rope.dtypes)} instead of float32")
    return _finding(label, (frequencies, attention, softmax), tuple(faults))


def _finding(label: str, errors: tuple[float, float, float], faults: tuple[str, ...]) -> InsideFinding:
    frequencies, attention, softmax = errors
    return InsideFinding(
        label=label,
        inv_freq_error=frequencies,
        attention_factor_error=attention,
        softmax_factor_error=softmax,
        ok=not faults,
        detail="; ".join(faults) or f"frequencies within {frequencies:.1g}, attention factor within {attention:.1g}",
    )


def _labels(module: Any) -> Iterator[str]:
    """The layer types of a module that holds a rope for each; "" for a plain one."""
    for name, _buffer in module.named_buffers(recurse=False):
        if name.endswith("inv_freq") and "original" not in name:
            yield name.removesuffix("inv_freq").rstrip("_")


def _dtypes(module: Any, label: str) -> tuple[str, ...]:
    prefix = f"{label}_" if label else ""
    names = {f"{prefix}inv_freq", f"{prefix}original_inv_freq"}
    found = {str(buffer.dtype) for name, buffer in module.named_buffers(recurse=False) if name in names}
    return tuple(sorted(dtype.removeprefix("torch.") for dtype in found))


def _turned(module: Any, label: str, length: int) -> tuple[tuple[float, ...], float]:
    """Frequencies and temperature by what a module's own forward returns for a text of ``length`` tokens.

    Past the hooks of an engine, which has lengths of its own.
    """
    import torch

    buffer = getattr(module, f"{label}_inv_freq" if label else "inv_freq")
    positions = torch.tensor([[0, 1, max(length - 1, 1)]], device=buffer.device)
    hidden = torch.zeros(1, 3, 8, device=buffer.device, dtype=torch.float32)
    named = {"layer_type": label} if label else {}
    try:
        turned = module.forward(hidden, positions, **named)
    except (IndexError, RuntimeError, ValueError):
        # Positions in three dimensions, of a model that also sees pictures.
        turned = module.forward(hidden, positions.expand(3, 1, 3), **named)
    cos, sin = (turned.real, turned.imag) if torch.is_tensor(turned) else turned
    cos, sin = (part.reshape(-1, *part.shape[-2:])[0].double().cpu() for part in (cos, sin))
    angles = torch.atan2(sin[1], cos[1])
    count = buffer.numel()
    if len(angles) == 2 * count:
        halves = torch.equal(angles[:count], angles[count:])
        angles = angles[:count] if halves else angles[0::2]
    return tuple(angles.tolist()), float(cos[0, 0])


def _fixed_tables(text: Any) -> list[InsideRope]:
    """Of models that look sines and cosines up in a table of (positions, sines then cosines), as GPT-J does."""
    import torch

    found = []
    for module in text.modules():
        for name, table in module.named_buffers(recurse=False):
            if name == "embed_positions" and table.ndim == 2:
                sin, cos = table[:2].double().cpu().chunk(2, dim=-1)
                found.append(
                    InsideRope(
                        label="",
                        inv_freq=tuple(torch.atan2(sin[1], cos[1]).tolist()),
                        attention_factor=float(cos[0, 0]),
                        softmax_factor=1.0,
                        dtypes=(str(table.dtype).removeprefix("torch."),),
                    )
                )
    return found


def _softmax_factor(text: Any) -> float:
    """What layers of latent attention multiply their usual softmax scale by; the one farthest from 1."""
    factors = [1.0]
    for module in text.modules():
        size, scale = getattr(module, "qk_head_dim", None), getattr(module, "scaling", None)
        if isinstance(size, int) and isinstance(scale, float):
            factors.append(scale * math.sqrt(size))
    return max(factors, key=lambda factor: abs(math.log(factor)))


@contextmanager
def _untouched(module: Any) -> Iterator[None]:
    """Put back what a forward changes in a module: its buffers, and the length that it remembers."""
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    buffers = {name: (buffer, buffer.clone()) for name, buffer in module.named_buffers(recurse=False)}
    try:
        yield
    finally:
        vars(module).update(plain)
        for name, (buffer, values) in buffers.items():
            buffer.copy_(values)
            setattr(module, name, buffer)
