"""What a row says of a family's GGUF export: its keys and tensors beside those of a checkpoint, readable both ways.

A checkpoint becomes a GGUF file by ``exports/export.py``; a GGUF file a checkpoint by the same rows: ``Key``
names both ends of a number, and ``TensorRule`` the tensors with operations that can all be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from msgspec import Struct

from ctxextend.contents import GgufType
from ctxextend.errors import CheckpointError
from ctxextend.exports.layout import Operation, PairRows


class Key(Struct, frozen=True, kw_only=True):
    """A number of the model: its GGUF key under the architecture's name, and its keys in config.json.

    The first of ``config`` that is there counts, and is the one to write into a config. ``added``: keys whose
    values are added to it; so the way back takes them off again. ``twins``: keys that must say the same.
    ``codes``: what config.json calls each number of the file. ``unset``: what the file says where config.json
    has none (always, without ``config``); without it a missing value is an error, unless ``optional``. ``whole``: a
    whole number in config.json all the same.
    """

    name: str
    config: tuple[str, ...]
    type: GgufType = "UINT32"
    added: tuple[str, ...] = ()
    twins: tuple[str, ...] = ()
    codes: Mapping[str, int] = MappingProxyType({})
    unset: float | None = None
    optional: bool = False
    whole: bool = False


class Fixed(Struct, frozen=True, kw_only=True):
    """A setting that the architecture has built in: any other value can't be exported.

    ``default`` is what the class takes where config.json is silent.
    """

    key: str
    values: tuple[Any, ...]
    default: Any


class Sizes(Struct, frozen=True, kw_only=True):
    """A model's sizes, by the names that shapes are written with. What a model hasn't got is 0."""

    layers: int
    dense_layers: int
    vocab: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    rotated: int = 0
    unrotated: int = 0
    value_dim: int = 0
    positions: int = 0

    @property
    def q(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def qkv(self) -> int:
        return self.q + 2 * self.kv

    @property
    def two_ffn(self) -> int:
        return 2 * self.ffn

    @property
    def two_expert_ffn(self) -> int:
        return 2 * self.expert_ffn

    @property
    def one(self) -> int:
        return 1

    @property
    def latent_q(self) -> int:
        """Rows of a latent attention's queries."""
        return self.heads * (self.unrotated + self.rotated)

    @property
    def latent_kv(self) -> int:
        """Rows that make a latent attention's keys and values."""
        return self.heads * (self.unrotated + self.value_dim)

    @property
    def latent_cache(self) -> int:
        return self.kv_rank + self.rotated

    @property
    def latent_values(self) -> int:
        return self.heads * self.value_dim


class TensorRule(Struct, frozen=True, kw_only=True):
    """One tensor of the file, in every layer where the name has ``{bid}``, and what it is made of.

    ``{xid}`` in ``hf`` counts the tensors that are stacked, as many as the size ``count`` says. ``shape`` names
    the sizes of a tensor of the checkpoint. ``layers``: those with the dense or the sparse feed-forward.
    ``when``: a setting and whether it must be on (true, or a number above 0) for the rule to count.
    ``spared``: a setting that lets the tensor be missing when it is on. Of several rules for one ``gguf``
    whose ``when`` holds, the first whose tensors are there counts; the first of all is the one to write a
    checkpoint with. ``optional``: it may always be missing.
    """

    hf: str
    gguf: str
    shape: tuple[str, ...]
    operations: tuple[Callable[[Sizes], Operation], ...] = ()
    layers: Literal["all", "dense", "sparse"] = "all"
    count: str = "experts"
    when: tuple[str, bool] | None = None
    spared: str | None = None
    optional: bool = False


class Settings(Struct, frozen=True):
    """A config's language model with its class's own values under it."""

    text: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def get(self, *keys: str) -> Any:
        """The first of ``keys`` that says something; a null is as good as silence, but hides the default."""
        for key in keys:
            if key in self.text:
                if self.text[key] is not None:
                    return self.text[key]
            elif key in self.defaults:
                return self.defaults[key]
        return None

    def whole(self, *keys: str) -> int:
        """A whole number from 0; 0 where nothing says it. Raises :class:`CheckpointError` for another value."""
        value = self.get(*keys)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return 0
        if type(value) is not int or value < 0:
            raise broken(keys[0], "a whole number", value)
        return value

    def needed(self, *keys: str) -> int:
        """A whole number from 1."""
        value = self.whole(*keys)
        if not value:
            raise broken(keys[0], "a whole number above 0", self.get(*keys))
        return value

    def on(self, key: str) -> bool:
        """Whether a switch is on, or a number above 0."""
        return bool(self.get(key))


class Row(Struct, frozen=True, kw_only=True):
    """One family's export. ``model_type`` and ``model_class`` are what its config.json says of itself.

    ``defaults`` are the class's own values where config.json is silent. ``refusals``: what can make a model one
    that the architecture doesn't compute; each gives the reason, or None. ``remarks``: as those, for what is
    computed a little differently. ``prefixes``: how names may begin instead, and with what they begin in the
    rules. ``dropped``: patterns of names that hold no weights; ``elsewhere``: of those that the file of a
    language model has no place for. ``further_layers``: the setting that counts layers past the last, which
    predict further tokens and are left out.

    ``names``: settings that its config calls otherwise, each with what it is called, the first that is there first;
    a dot leads into an object, and nothing that none of the names says counts, not even under the setting's own name.
    ``derived``: settings that follow from others. ``position``: how positions reach attention where there is no rope.
    """

    family: str
    architecture: str
    model_type: str
    model_class: str
    keys: tuple[Key, ...]
    tensors: tuple[TensorRule, ...]
    defaults: Mapping[str, Any] = MappingProxyType({})
    fixed: tuple[Fixed, ...] = ()
    refusals: tuple[Callable[[Settings], str | None], ...] = ()
    remarks: tuple[Callable[[Settings], str | None], ...] = ()
    prefixes: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = (r"\.rotary_emb\.inv_freq$",)
    elsewhere: tuple[str, ...] = ()
    further_layers: str | None = None
    names: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    derived: Callable[[Settings], Mapping[str, Any]] | None = None
    position: Literal["rope", "learned", "alibi"] = "rope"


#: The setting that says how many rows a table of positions has, of models without a rope.
POSITIONS: Final = "position_rows"

#: Where a count of experts stands. A class's own is under the last name, so that another's hides it.
EXPERTS: Final = ("n_routed_experts", "num_experts", "num_local_experts")

#: A config that counts more of anything that is stacked is broken.
_MOST_STACKED: Final = 65_536


def settings_of(row: Row, text: Mapping[str, Any]) -> Settings:
    """The settings that a config's language model has, a head's size among them."""
    settings = Settings(_named(row, text), row.defaults)
    if settings.get("head_dim") is None:
        head_dim = settings.needed("hidden_size") // settings.needed("num_attention_heads")
        settings = Settings({**settings.text, "head_dim": head_dim}, row.defaults)
    if row.derived is not None:
        settings = Settings({**settings.text, **row.derived(settings)}, row.defaults)
    return settings


def _named(row: Row, text: Mapping[str, Any]) -> dict[str, Any]:
    """The config's settings by the names that rules and keys have for them."""
    found = {key: value for key, value in text.items() if key not in row.names}
    for setting, names in row.names.items():
        said = (_at(text, name.split(".")) for name in names)
        value = next((value for value in said if value is not None), None)
        if value is not None:
            found[setting] = value
    return found


def _at(text: Any, path: list[str]) -> Any:
    """The value at a path of keys; None where there is none."""
    for key in path:
        text = text.get(key) if isinstance(text, Mapping) else None
    return text


def sizes_of(settings: Settings) -> Sizes:
    """The sizes that shapes are written with. Raises :class:`CheckpointError` for one that is missing."""
    layers, experts = settings.needed("num_hidden_layers"), settings.whole(*EXPERTS)
    heads = settings.needed("num_attention_heads")
    kv_heads = settings.needed("num_key_value_heads", "num_attention_heads")
    for key, count in ((EXPERTS[0], experts), ("num_attention_heads", heads), ("num_key_value_heads", kv_heads)):
        if count > _MOST_STACKED:
            raise broken(key, f"at most {_MOST_STACKED}", count)
    expert_ffn = settings.whole("moe_intermediate_size", "intermediate_size") if experts else 0
    shared = settings.whole("n_shared_experts") * expert_ffn
    return Sizes(
        layers=layers,
        dense_layers=min(settings.whole("first_k_dense_replace"), layers) if experts else layers,
        vocab=settings.needed("vocab_size"),
        hidden=settings.needed("hidden_size"),
        ffn=settings.needed("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=settings.needed("head_dim"),
        experts=experts,
        expert_ffn=expert_ffn,
        shared_ffn=settings.whole("shared_expert_intermediate_size") or shared,
        q_rank=settings.whole("q_lora_rank"),
        kv_rank=settings.whole("kv_lora_rank"),
        rotated=settings.whole("qk_rope_head_dim"),
        unrotated=settings.whole("qk_nope_head_dim"),
        value_dim=settings.whole("v_head_dim"),
        positions=settings.whole(POSITIONS),
    )


def broken(key: str, expected: str, found: object) -> CheckpointError:
    """A value of config.json that can't be."""
    return CheckpointError(
        "a value of config.json can't be read",
        code="broken-config",
        file="config.json",
        key=key,
        expected=expected,
        found="none" if found is None else repr(found)[:60],
        hint=f"set {key} as the model's publisher has it",
    )


def pair_q(sizes: Sizes) -> Operation:
    """Queries that pair halves of a head, for a rope that pairs neighbours."""
    return PairRows(heads=sizes.heads)


def pair_k(sizes: Sizes) -> Operation:
    """Keys that pair halves of a head, for a rope that pairs neighbours."""
    return PairRows(heads=sizes.kv_heads)
