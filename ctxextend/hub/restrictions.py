"""What a source's publisher keeps from the public: never published unasked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ctxextend.errors import RefusedError
from ctxextend.hub.values import RESTRICTED


class Terms(Struct, frozen=True, kw_only=True):
    """Under which terms a source stands. ``restricted``: why it isn't for everybody; ``note``: what else to look at."""

    restricted: str | None = None
    note: str | None = None


def terms_of(
    card: Mapping[str, Any],
    *,
    source: str | None = None,
    gated: object = None,
    private: bool = False,
    seen: bool = True,
) -> Terms:
    """What a card's front matter and the Hub say of ``source``. ``seen``: the Hub showed the repository."""
    named = source or "the source"
    asked = next((key for key in card if str(key).startswith("extra_gated")), None)
    reason = None
    if not seen:
        reason = f"{named} can't be seen with this token, so that it may be private or gated"
    elif private:
        reason = f"{named} is private"
    elif gated or (asked is None and card.get("gated")):
        reason = f"{named} is gated: its publisher wants its licence accepted first"
    elif asked is not None:
        reason = f"the card of {named} says {asked}: its publisher wants its licence accepted first"
    note = None
    if card.get("license") == "other":
        licence = card.get("license_link") or card.get("license_name") or "its card says which"
        note = f"{named} has a licence of its own: see that it allows to publish this ({licence})"
    return Terms(restricted=reason, note=note)


def refuse_restricted(terms: Terms, repo_id: str, *, private: bool, allow: tuple[str, ...]) -> None:
    """Raises :class:`RefusedError` where what isn't for everybody would go where everybody can read it."""
    if terms.restricted is None or private or RESTRICTED in allow:
        return
    raise RefusedError(
        f"{repo_id} would be public, and {terms.restricted}",
        code="restricted-source",
        expected="a private repository",
        hint=f"publish it with --private into a repository that is new or private; --allow {RESTRICTED} publishes it "
        "where the licence lets you",
    )
