"""Laws of ``check`` and ``--fix`` over every family: a repair keeps what was meant, and nothing that differs passes."""

from __future__ import annotations

from typing import Any

import pytest

from ctxextend.check import check, meant_by
from ctxextend.comparison import compare
from ctxextend.errors import CtxextendError
from ctxextend.families import FAMILIES, Family
from ctxextend.inspection import inspect
from ctxextend.repair import make_repair
from ctxextend.runtimes import DEFAULT_RUNTIMES
from ctxextend.runtimes.transformers import Transformers5
from tests.factories import contents, converted, family_config

ROTARY = [row for row in FAMILIES.values() if row.position == "rope" and row.refusal is None]
FAMILY = pytest.mark.parametrize("family", ROTARY, ids=[row.name for row in ROTARY])

#: What people write beside a stated length of 4096, right and wrong.
SCALINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "card": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}},
    "raised": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}},
    "temperature": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
            "attention_factor": 1.0,
            "truncate": False,
        }
    },
    "linear": {"rope_scaling": {"type": "linear", "factor": 4}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "newer": {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
    "stray": {
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    },
}


@FAMILY
def test_a_repair_keeps_what_transformers_reads(family: Family) -> None:
    for name, settings in SCALINGS.items():
        source = contents({**family_config(family), "max_position_embeddings": 4096, **settings})
        try:
            inspection = inspect(source)
            meant = meant_by(source, inspection)
            plan = make_repair(source, inspection, runtimes=("transformers",))
        except CtxextendError:
            continue
        assert meant is not None
        after = converted(source.config, plan)
        reading = Transformers5().effective(after, family, length=meant.target)
        found = compare(reading, meant.tables, target=meant.target)
        assert found.reason is None, (name, found.reason)


@FAMILY
def test_a_required_runtime_that_differs_is_an_error(family: Family) -> None:
    for name, settings in SCALINGS.items():
        source = contents({**family_config(family), "max_position_embeddings": 4096, **settings})
        try:
            found = check(source, inspect(source), required=DEFAULT_RUNTIMES)
        except CtxextendError:
            continue
        differs = any(report.required and not report.ok for report in found.runtimes)
        errors = [finding for finding in found.findings if finding.severity == "error"]
        assert bool(errors) is not found.ok
        assert not differs or errors, name
