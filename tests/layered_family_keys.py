"""What the classes of layered families need in a tiny config.json: a rope a layer type, latent attention, hybrids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS: Mapping[str, Mapping[str, Any]] = {}
