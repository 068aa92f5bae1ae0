"""Recipes: a file that says how a model is released, read, validated whole, and carried out step by step.

>>> from pathlib import Path
>>> from ctxextend.release import RunOptions, read_recipe, run
>>> recipe = read_recipe(Path("demo/recipe.yaml"), {"org": "my-org"})
>>> [step.step for step in run(recipe, RunOptions(dry_run=True, push=False)).variants[0].steps][:2]
['convert', 'convert']
"""

from __future__ import annotations

from ctxextend.release.audience import Audience
from ctxextend.release.prepared import RunOptions
from ctxextend.release.reading import RecipeFile, Variant, read_recipe
from ctxextend.release.results import RunResult, StepResult, VariantResult
from ctxextend.release.running import merge, run

__all__ = [
    "Audience",
    "RecipeFile",
    "RunOptions",
    "RunResult",
    "StepResult",
    "Variant",
    "VariantResult",
    "merge",
    "read_recipe",
    "run",
]
