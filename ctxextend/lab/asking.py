"""What is asked of the lab, in the words of the command line and of recipes: read, or refused.

Lists are comma-separated. The key of an error is the command line's option.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctxextend.errors import UnknownNameError, UsageError
from ctxextend.lab.names import BOUNDS, TASKS, EngineName, Task
from ctxextend.lengths import parse_tokens

if TYPE_CHECKING:
    from ctxextend.lab.engines import Choice
    from ctxextend.lab.results import Settings
    from ctxextend.lab.smoke import Limits

#: Tasks that a bound of ``--gate`` is for.
_GATED: Final[frozenset[Task]] = frozenset({"perplexity", "passkey", "needles", "short"})


def choice_of(
    *,
    engine: EngineName,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    endpoint: str | None = None,
    served_name: str | None = None,
    api_key: str | None = None,
    tokenizer: Path | None = None,
) -> Choice:
    """The engine that the flags name. Raises :class:`UsageError` for a server's options without a server."""
    for option, given in (("--served-name", served_name), ("--tokenizer", tokenizer)):
        if endpoint is None and given is not None:
            raise UsageError(f"{option} goes with --endpoint", code="bad-option", key=option, hint="add --endpoint URL")
    from ctxextend.lab.engines import Choice
    from ctxextend.lab.engines.http_json import may_send

    if api_key is None and endpoint is not None and may_send(endpoint):
        api_key = os.environ.get("OPENAI_API_KEY")
    return Choice(
        engine=engine,
        endpoint=endpoint,
        served_name=served_name,
        api_key=api_key,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )


def bounds_of(given: Mapping[str, float | None]) -> dict[str, float]:
    """The bounds that were named. Raises :class:`UsageError` for one that no figure could be held to."""
    found = {}
    for name, value in given.items():
        if value is None:
            continue
        # What is to be at least so much is a share of what was asked.
        most = math.inf if BOUNDS[name].most else 1.0
        if not (math.isfinite(value) and 0.0 <= value <= most):
            raise UsageError(
                f"{BOUNDS[name].option} can't be held",
                code="bad-number",
                key=BOUNDS[name].option,
                expected="a number of at least 0" if BOUNDS[name].most else "a number from 0 to 1",
                found=f"{value:g}",
            )
        found[name] = value
    return found


#: The task that measures what a bound is for; the others come of holding a model against its original.
_MEASURED: Final[Mapping[str, Task]] = {"perplexity-ratio": "perplexity", "passkey": "passkey", "needles": "needles"}


def require_measured(bounds: Iterable[str], tasks: Iterable[Task], *, against: bool) -> None:
    """Raises :class:`UsageError` for a bound of something that isn't measured."""
    found = {*tasks, *(("short",) if against else ())}
    for name in bounds:
        task = _MEASURED.get(name, "short")
        if task not in found:
            raise UsageError(
                f"nothing that is measured can be held to {name}",
                code="nothing-to-hold",
                key=BOUNDS[name].option,
                expected=f"{task} among the tasks" if task != "short" else "--against BASE",
                hint="add it, or leave the bound away",
            )


def require_gated(tasks: Iterable[Task], *, against: bool) -> None:
    """Raises :class:`UsageError` where ``--gate`` would hold nothing, whatever is measured."""
    if not against and not _GATED & set(tasks):
        raise UsageError(
            "--gate has no bound for any of these tasks",
            code="nothing-to-hold",
            key="--gate",
            expected=f"one of {', '.join(sorted(_GATED))} among the tasks",
            found=", ".join(tasks),
            hint="add one of them to --tasks, or leave --gate away",
        )


def lengths_of(listed: str | None, *, option: str) -> tuple[int, ...]:
    """The lengths of a comma-separated list, shortest first; none without a list. Raises :class:`UsageError`."""
    if listed is None:
        return ()
    found = tuple(sorted({parse_tokens(part, option=option) for part in listed.split(",") if part.strip()}))
    if not found:
        raise UsageError("no length is named", code="bad-option", key=option, expected="such as 16k,32k", found=listed)
    return found


def tasks_of(listed: str) -> tuple[Task, ...]:
    """The tasks of a comma-separated list, in the order they are run. Raises :class:`UnknownNameError`."""
    names = [part.strip() for part in listed.split(",") if part.strip()]
    for name in names:
        if name not in TASKS:
            raise UnknownNameError("task", name, TASKS)
    if not names:
        raise UsageError("no task is named", code="bad-option", key="--tasks", expected=", ".join(TASKS))
    return tuple(task for task in TASKS if task in names)


def depths_of(listed: str) -> tuple[float, ...]:
    """The depths of a comma-separated list. Raises :class:`UsageError` for one outside 0 to 1."""
    depths = []
    for part in listed.split(","):
        try:
            depth = float(part)
        except ValueError:
            depth = math.nan
        if not 0.0 <= depth <= 1.0:
            raise UsageError(
                "--depths can't be read",
                code="bad-number",
                key="--depths",
                expected="numbers from 0 to 1, such as 0.1,0.5,0.9",
                found=repr(part),
            )
        depths.append(depth)
    return tuple(sorted(set(depths)))


def settings_from(
    *,
    tasks: str,
    lengths: str | None,
    short_lengths: str | None,
    windows: int,
    samples: int,
    depths: str,
    needles: int = 4,
    stride: int = 256,
    seed: int,
) -> Settings:
    """What is to be measured. Raises :class:`UsageError` for what can't be."""
    from ctxextend.lab.results import Settings

    counted = {"--windows": windows, "--samples": samples, "--needles": needles, "--stride": stride}
    for option, value, least in (*((name, value, 1) for name, value in counted.items()), ("--seed", seed, 0)):
        if value < least:
            raise UsageError(
                f"{option} can't be so small",
                code="bad-number",
                key=option,
                expected=f"at least {least}",
                found=str(value),
            )

    return Settings(
        tasks=tasks_of(tasks),
        lengths=lengths_of(lengths, option="--lengths"),
        short_lengths=lengths_of(short_lengths, option="--short-lengths"),
        windows=windows,
        stride=stride,
        depths=depths_of(depths),
        samples=samples,
        needles=needles,
        seed=seed,
    )


def limits_of(max_perplexity_ratio: float, min_passkey: float) -> Limits:
    """What a smoke test is held to. Raises :class:`UsageError` for a bound that nothing could be held to."""
    from ctxextend.lab.smoke import Limits

    _require_bound("--max-perplexity-ratio", max_perplexity_ratio, most=math.inf)
    _require_bound("--min-passkey", min_passkey, most=1.0)
    return Limits(perplexity_ratio=max_perplexity_ratio, passkey=min_passkey)


def _require_bound(option: str, value: float, *, most: float) -> None:
    """Raises :class:`UsageError` for a bound that nothing could be held to."""
    if not (math.isfinite(value) and 0.0 <= value <= most and (value or most == 1.0)):
        raise UsageError(
            f"{option} can't be held",
            code="bad-number",
            key=option,
            expected="a share from 0 to 1" if most == 1.0 else "a positive number",
            found=f"{value:g}",
        )
