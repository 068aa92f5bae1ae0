"""Extend the context length of language model checkpoints, and show what every runtime makes of it.

>>> import ctxextend
>>> opened = ctxextend.open_source("demo/checkpoint")
>>> plan = ctxextend.plan_source(opened, ctxextend.Recipe(method="yarn", target=1024))
>>> plan.factor
4.0

``run_plan(plan, opened, out)`` then writes the checkpoint; ``check_source(opened)`` says what every
runtime makes of one.
"""

from ctxextend.apply import Manifest, Options
from ctxextend.check import check
from ctxextend.errors import CtxextendError
from ctxextend.findings import Check, Finding, Meant
from ctxextend.inspection import Inspection, inspect
from ctxextend.methods import Base, Method
from ctxextend.pipeline import (
    Opened,
    check_source,
    inspect_source,
    meaning_of,
    open_source,
    plan_source,
    repair_source,
    run_plan,
)
from ctxextend.plan import Plan, make_plan
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeSpec, RopeTable
from ctxextend.scaling import Scaling, table
from ctxextend.version import VERSION

__version__ = VERSION

__all__ = [
    "Base",
    "Check",
    "CtxextendError",
    "Finding",
    "Inspection",
    "Manifest",
    "Meant",
    "Method",
    "Opened",
    "Options",
    "Plan",
    "Recipe",
    "RopeSpec",
    "RopeTable",
    "Scaling",
    "__version__",
    "check",
    "check_source",
    "inspect",
    "inspect_source",
    "make_plan",
    "meaning_of",
    "open_source",
    "plan_source",
    "repair_source",
    "run_plan",
    "table",
]
