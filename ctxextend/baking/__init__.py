"""Temperature in the weights: what an attention factor does to scores, done to the queries that they come from.

For runtimes that ignore the factor. One row a family says which tensors hold its queries (:mod:`rows`); what isn't
exact in real arithmetic is refused.
"""

from __future__ import annotations

from ctxextend.baking.folding import Fold, fold_temperature, why_not

__all__ = ["Fold", "fold_temperature", "why_not"]
