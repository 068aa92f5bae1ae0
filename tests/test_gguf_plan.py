"""Plans for GGUF files: the keys that llama.cpp reads, from the base, and back to it; refused where nothing says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from ctxextend.apply import plan_from
from ctxextend.changes import Carry, SetKey, changes_nothing, gguf_edits_of
from ctxextend.contents import Contents, FileInfo, GgufEdits, GgufValue
from ctxextend.errors import CheckpointError, RefusedError, UsageError
from ctxextend.formats.gguf_write import applied
from ctxextend.gguf_inspection import gguf_of, inspect_gguf
from ctxextend.gguf_plan import make_gguf_plan
from ctxextend.gguf_record import KEY, find_gguf_record, without_record
from ctxextend.inspection import Inspection
from ctxextend.plan import Plan
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Linear, Llama3, Yarn, table
from tests.gguf_factory import gguf, value

L, T = 1024, 4096
HEAD = 32


def contents(architecture: str = "llama", **changes: Any) -> Contents:
    factors = changes.pop("factors", {})
    return Contents(
        name="tiny",
        source="tiny.gguf",
        storage="gguf",
        files=(FileInfo(path="tiny.gguf", size_bytes=1000),),
        documents={},
        gguf=gguf(architecture, factors=factors, **changes),
    )


def inspected(source: Contents, **options: Any) -> Inspection:
    return inspect_gguf(source, **options)


def planned(source: Contents, method: str = "yarn", target: int | None = T, **recipe: Any) -> Plan:
    asked = Recipe(method=method, target=target, **recipe)
    inspection = inspect_gguf(source, base=asked.base, original_context=asked.original_context, family=asked.family)
    return make_gguf_plan(source, inspection, asked)


def converted(source: Contents, plan: Plan) -> Contents:
    return msgspec.structs.replace(source, gguf=applied(gguf_of(source), gguf_edits_of(plan.actions)))


def said(plan: Plan) -> dict[str, Any]:
    """What the plan sets, but its record."""
    return {key: entry.value for key, entry in gguf_edits_of(plan.actions).keys.items() if key != KEY}


@pytest.mark.parametrize(
    ("method", "options", "keys"),
    [
        ("linear", {}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        ("yarn", {}, {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}),
        # The temperature beside llama.cpp's own, 0.1 ln 4 + 1.
        (
            "yarn",
            {"attention_factor": 1.0},
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.attn_factor": 1.0 / (0.1 * math.log(4) + 1),
            },
        ),
        # 10000 * 4 ** (32 / 30), the static base of NTK.
        ("ntk", {}, {"rope.freq_base": 10000.0 * 4 ** (HEAD / (HEAD - 2))}),
        ("rebase", {"rope_theta": 500000.0}, {"rope.freq_base": 500000.0}),
    ],
    ids=["linear", "yarn", "yarn without temperature", "ntk", "rebase"],
)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gptneox"])
def test_the_keys_of_each_method(
    architecture: str, method: str, options: Mapping[str, Any], keys: Mapping[str, Any]
) -> None:
    plan = planned(contents(architecture), method, options=options)
    wanted = {"context_length": T, "rope.scaling.original_context_length": L, **keys}
    found = said(plan)
    assert found.keys() == {f"{architecture}.{key}" for key in wanted}
    for key, expected in wanted.items():
        got = found[f"{architecture}.{key}"]
        assert got == (pytest.approx(expected, rel=1e-6) if isinstance(expected, float) else expected)
    assert not plan.misread
    assert plan.to == "gguf"
    assert plan.out == f"tiny-{method}-4k.gguf"


def test_a_rope_that_no_key_says_is_a_tensor_where_the_architecture_loads_one() -> None:
    plan = planned(contents(), "llama3")
    numbers = gguf_edits_of(plan.actions).tensors["rope_freqs.weight"]
    # Llama 3's formula by hand for the ends: the fastest pair stays, the slowest is divided by the factor.
    assert numbers[0] == 1.0
    assert numbers[-1] == 4.0
    assert len(numbers) == HEAD // 2
    with pytest.raises(RefusedError) as refused:
        planned(contents("qwen3"), "llama3")
    assert refused.value.code == "unwritable"
    assert refused.value.hint is not None


def test_a_nearest_form_can_be_allowed() -> None:
    odd: dict[str, Any] = {"options": {"beta_fast": 8.0}}
    with pytest.raises(RefusedError, match="no form of this table") as refused:
        planned(contents("qwen3"), **odd)
    assert refused.value.code == "unreadable"
    assert "--allow unreadable" in (refused.value.hint or "")
    plan = planned(contents("qwen3"), **odd, allow=("unreadable",))
    assert plan.misread == ("llama.cpp >=11434",)
    assert "unreadable" in {warning.code for warning in plan.warnings}


def test_carriers_can_be_chosen() -> None:
    assert gguf_edits_of(planned(contents(), "yarn", carrier="factors").actions).tensors
    assert not gguf_edits_of(planned(contents(), "yarn", carrier="native").actions).tensors
    with pytest.raises(RefusedError) as refused:
        planned(contents(), "llama3", carrier="native")
    assert refused.value.code == "unwritable"
    assert "--carrier auto" in (refused.value.hint or "")


def test_dynamic_becomes_the_base_that_it_reaches() -> None:
    plan = planned(contents(), "dynamic")
    # transformers: base * (s * n / L - (s - 1)) ** (d / (d - 2)) with n = 4 L and s = 4.
    base = 10000.0 * (4 * 4 - 3) ** (HEAD / (HEAD - 2))
    assert said(plan)["llama.rope.freq_base"] == pytest.approx(base, rel=1e-6)
    assert "dynamic-made-static" in {warning.code for warning in plan.warnings}


def test_dead_and_contradictory_keys_go_and_are_told() -> None:
    source = contents(
        context_length=T,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=L,
        rope__scaling__yarn_beta_fast=8.0,
        rope__scaling__attn_factor=2.0,
    )
    plan = planned(source, "linear", 2 * T, base="unscaled")
    gone = {"llama.rope.scaling.yarn_beta_fast", "llama.rope.scaling.attn_factor"}
    assert gone == set(gguf_edits_of(plan.actions).removed)
    warning = next(warning for warning in plan.warnings if warning.code == "removed-keys")
    assert all(key in warning.message for key in gone)


def test_a_second_conversion_starts_from_the_base() -> None:
    source = contents(general__name="tiny")
    once = converted(source, planned(source, "yarn", 4 * L))
    again = planned(once, "yarn", 4 * L)
    assert changes_nothing(again.actions)
    assert isinstance(again.actions[-1], Carry)
    other = converted(once, planned(once, "llama3", 8 * L))
    direct = converted(source, planned(source, "llama3", 8 * L))
    assert gguf_of(other).values == gguf_of(direct).values
    assert gguf_of(other).factors == gguf_of(direct).factors
    inspection = inspected(other)
    assert inspection.trained_context == L
    assert inspection.current_context == 8 * L
    assert [group.origin for group in inspection.groups] == ["ours"]
    base = without_record(gguf_of(other), find_gguf_record(gguf_of(other)))
    assert base.values == gguf_of(source).values
    assert not base.factors


def test_our_own_scaling_is_no_base() -> None:
    source = contents()
    once = converted(source, planned(source))
    with pytest.raises(RefusedError) as refused:
        planned(once, "linear", 2 * T, base="trained")
    assert refused.value.code == "ours-as-base"


def test_a_record_that_was_tampered_with_is_told() -> None:
    source = contents()
    broken = applied(gguf_of(source), GgufEdits(keys={KEY: GgufValue(type="STRING", value="{}")}))
    with pytest.raises(CheckpointError) as error:
        inspected(msgspec.structs.replace(source, gguf=broken))
    assert error.value.code == "broken-record"


def test_gemma3s_linear_8_was_trained_in() -> None:
    source = contents(
        "gemma3",
        block_count=6,
        context_length=4096,
        attention__sliding_window=512,
        rope__freq_base=1000000.0,
        rope__freq_base_swa=10000.0,
        rope__scaling__type="linear",
        rope__scaling__factor=8.0,
    )
    inspection = inspected(source)
    full = next(group for group in inspection.groups if group.label == "full_attention")
    assert full.origin == "trained"
    assert isinstance(full.scaling, Linear)
    found = said(planned(source, "linear", 4 * 4096))
    assert found["gemma3.rope.scaling.factor"] == 32.0
    assert "gemma3.rope.freq_base_swa" not in found


def test_llama3s_published_factors_are_recognised_as_trained_in() -> None:
    spec = RopeSpec(rope_theta=500000.0, head_dim=128, rotary_dim=128)
    trained = Llama3(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    freqs = tuple(a / b for a, b in zip(spec.inv_freq(), table(spec, trained).inv_freq, strict=True))
    source = contents(
        rope__freq_base=500000.0,
        context_length=131072,
        attention__key_length=128,
        factors={"rope_freqs.weight": freqs},
    )
    (group,) = inspected(source).groups
    assert group.scaling == trained
    assert group.origin == "trained"
    plan = planned(source, "llama3", 4 * 131072)
    # Its own factor, raised: 8 * 4.
    after = gguf_edits_of(plan.actions).tensors["rope_freqs.weight"]
    assert after[-1] == pytest.approx(32.0)


def test_a_bolted_on_yarn_is_taken_off_first() -> None:
    source = contents(
        "qwen2",
        context_length=T,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=L,
    )
    inspection = inspected(source)
    assert [group.origin for group in inspection.groups] == ["bolted-on"]
    assert inspection.trained_context == L
    assert said(planned(source, "yarn", 2 * T))["qwen2.rope.scaling.factor"] == 8.0


@pytest.mark.parametrize(
    ("base", "trained", "factor"),
    [("unscaled", L, 8.0), ("trained", T, 8.0)],
)
def test_what_nothing_tells_is_asked(base: Any, trained: int, factor: float) -> None:
    source = contents(
        context_length=T,
        rope__scaling__type="linear",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=L,
    )
    with pytest.raises(RefusedError) as refused:
        planned(source, "linear", 2 * T)
    assert refused.value.code == "undecidable-base"
    assert refused.value.key == "llama.rope.scaling.type"
    plan = planned(source, "linear", 2 * T, base=base)
    assert plan.trained_context == trained
    # From L: 8 L / L; from the trained-in 4 at 4 L: 4 * 2.
    assert said(plan)["llama.rope.scaling.factor"] == factor


def test_finetuned_says_what_was_trained() -> None:
    scaled: dict[str, Any] = {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0, "context_length": T}
    for said_so, origin in ((True, "trained"), (False, "bolted-on")):
        found = inspected(contents(**scaled, rope__scaling__finetuned=said_so))
        assert [group.origin for group in found.groups] == [origin]


def test_an_overstated_length_is_known_and_overridden() -> None:
    # Qwen3's files say 40960; its cards say that 32768 were trained.
    source = contents("qwen3", context_length=40960)
    assert inspected(source).trained_context == 32768
    assert inspected(source, original_context=40960).trained_context == 40960


def test_within_the_trained_length() -> None:
    source = contents()
    plan = planned(source, "auto", L)
    assert plan.method == "none"
    assert changes_nothing(plan.actions)
    with pytest.raises(RefusedError) as refused:
        planned(source, "yarn", L)
    assert refused.value.code == "within-trained"


def test_the_plan_survives_json() -> None:
    plan = planned(contents(), "llama3")
    assert plan_from(msgspec.json.decode(msgspec.json.encode(plan)), file="plan.json") == plan


def test_windows_are_not_changed_here() -> None:
    with pytest.raises(UsageError, match="windows of a GGUF file"):
        planned(contents(), sliding_window="off")


def test_runtimes_that_read_no_gguf_are_told() -> None:
    codes = {warning.code for warning in planned(contents(), runtimes=("vllm", "mlx-lm")).warnings}
    assert "no-reader-named" in codes
    assert "no-reader-named" not in {warning.code for warning in planned(contents()).warnings}


def test_what_stood_there_is_in_the_plan() -> None:
    plan = planned(contents(rope__freq_base=20000.0), "ntk")
    action = next(a for a in plan.actions if isinstance(a, SetKey) and a.key == "llama.rope.freq_base")
    assert action.before == value(20000.0)


def test_yarn_over_a_trained_yarn() -> None:
    # gpt-oss: yarn 32 from 4096, trained in.
    source = contents(
        "gpt-oss",
        block_count=2,
        context_length=131072,
        attention__key_length=64,
        attention__sliding_window=128,
        rope__freq_base=150000.0,
        rope__scaling__type="yarn",
        rope__scaling__factor=32.0,
        rope__scaling__original_context_length=4096,
    )
    inspection = inspected(source)
    assert inspection.trained_context == 131072
    assert {group.origin for group in inspection.groups} == {"trained"}
    assert all(isinstance(group.scaling, Yarn) for group in inspection.groups)
    found = said(planned(source, "yarn", 262144))
    assert found["gpt-oss.rope.scaling.factor"] == 64.0
