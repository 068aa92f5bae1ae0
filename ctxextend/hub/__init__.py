"""The Hub: a checkpoint published in one commit, and without moving weights that the Hub has already."""

from __future__ import annotations

from ctxextend.hub.direct import needs_no_weights, push_direct
from ctxextend.hub.pushing import check_publishing, push_path, require_name
from ctxextend.hub.values import Pushed, PushedFile, PushOptions

__all__ = [
    "PushOptions",
    "Pushed",
    "PushedFile",
    "check_publishing",
    "needs_no_weights",
    "push_direct",
    "push_path",
    "require_name",
]
