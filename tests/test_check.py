"""``check``: each trap is named, those that a required runtime falls into are errors, and what is right stays quiet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ctxextend.check import check, meant_by, meant_by_plan
from ctxextend.contents import Contents, Note
from ctxextend.families import FAMILIES
from ctxextend.findings import Check
from ctxextend.inspection import inspect
from ctxextend.plan import make_plan
from ctxextend.recipe import Recipe
from ctxextend.runtimes import DEFAULT_RUNTIMES, readers_of
from tests.factories import config, contents, converted, family_config, planned

L, T = 32768, 131072
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": L}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": L,
}


def qwen3(**changes: Any) -> dict[str, Any]:
    return family_config(FAMILIES["qwen3"], max_position_embeddings=T, rope_theta=1000000.0, **changes)


def llama(**changes: Any) -> dict[str, Any]:
    return config(max_position_embeddings=T, **changes)


def checked(value: Mapping[str, Any] | Contents, *runtimes: str, **documents: Any) -> Check:
    source = value if isinstance(value, Contents) else contents(value, **documents)
    return check(source, inspect(source), required=runtimes or DEFAULT_RUNTIMES)


def severities(found: Check) -> dict[str, str]:
    worst: dict[str, str] = {}
    for finding in found.findings:  # errors come first
        worst.setdefault(finding.code, finding.severity)
    return worst


def newer_only(value: Mapping[str, Any]) -> dict[str, Any]:
    """The config as transformers 5 saves it."""
    kept = {key: v for key, v in value.items() if key not in ("rope_theta", "rope_scaling")}
    return {**kept, "rope_parameters": {**(value.get("rope_scaling") or {}), "rope_theta": value["rope_theta"]}}


def nested_with_flat() -> dict[str, Any]:
    inner = family_config(FAMILIES["mistral"], max_position_embeddings=L)
    return {"model_type": "mistral3", "text_config": inner, "rope_scaling": YARN}


def ministral3(original: int) -> dict[str, Any]:
    yarn = {**(FAMILIES["ministral3"].default_scaling or {}), "original_max_position_embeddings": original}
    newer = {"rope_theta": 1e6, "rope_parameters": {**yarn, "rope_theta": 1e6}}
    return family_config(FAMILIES["ministral3"], max_position_embeddings=16 * original, **newer)


def deepseek(**changes: Any) -> dict[str, Any]:
    yarn = {**YARN, "original_max_position_embeddings": 4096, **changes}
    return family_config(FAMILIES["deepseek_v3"], max_position_embeddings=16384, rope_scaling=yarn)


#: Each trap of docs/reference that files show: a config, the finding, whether it makes a default runtime differ.
TRAPS: dict[str, tuple[dict[str, Any], str, str]] = {
    "the model card's form": (
        qwen3(rope_scaling=YARN) | {"max_position_embeddings": 40960},
        "length-mismatch",
        "error",
    ),
    "the newer form alone": (newer_only(llama(rope_scaling=YARN)), "new-form-only", "error"),
    "two dictionaries": (
        llama(rope_scaling=YARN, rope_parameters={**YARN, "factor": 8.0, "rope_theta": 1e4}),
        "both-dictionaries",
        "warning",
    ),
    "two thetas": (llama(rope_scaling=YARN, rope_parameters={**YARN, "rope_theta": 5e5}), "theta-twice", "warning"),
    "a stale original length": (
        llama(rope_scaling=YARN, original_max_position_embeddings=4096),
        "original-length-twice",
        "error",
    ),
    "an integer factor": (llama(rope_scaling={"rope_type": "linear", "factor": 4}), "integer-factor", "error"),
    "yarn without an original length": (
        llama(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
        "original-length-missing",
        "error",
    ),
    "an attention factor": (
        qwen3(rope_scaling={**YARN, "attention_factor": 1.0}),
        "attention-factor-ignored",
        "error",
    ),
    "latent attention without the pair": (deepseek(), "latent-without-pair", "warning"),
    "latent attention with half of it": (deepseek(mscale=1.0), "latent-without-pair", "warning"),
    "a linear length that is multiplied": (
        llama(rope_scaling={"rope_type": "linear", "factor": 4.0}),
        "length-multiplied",
        "warning",
    ),
    "dynamic for a server": (
        config(max_position_embeddings=L, rope_scaling={"rope_type": "dynamic", "factor": 4.0}),
        "dynamic-for-a-server",
        "error",
    ),
    "a flat override beside a nested config": (nested_with_flat(), "flat-beside-nested", "error"),
    "a moved query scale": (ministral3(8192), "query-scale-moved", "error"),
    "lists that change over": (
        llama(
            rope_scaling={
                "rope_type": "longrope",
                "short_factor": [1.0] * 16,
                "long_factor": [4.0] * 16,
                "original_max_position_embeddings": L,
                "factor": 4.0,
            },
            original_max_position_embeddings=L,
        ),
        "longrope-switches",
        "warning",
    ),
    "keys of YaRN's first code": (
        qwen3(rope_scaling={**YARN, "attn_factor": 1.0, "extrapolation_factor": 1.0}),
        "dead-keys",
        "info",
    ),
    "a multiplier of the temperature": (
        qwen3(rope_scaling={**YARN, "attn_factor": 0.5}),
        "attention-factor-ignored",
        "error",
    ),
    "two spellings": (qwen3(rope_scaling={**YARN, "type": "yarn"}), "two-spellings", "info"),
    "a stale synonym": (qwen3(rope_scaling=YARN, max_sequence_length=L), "length-below", "error"),
    "sections of positions": (
        family_config(
            FAMILIES["qwen2_5_vl"],
            max_position_embeddings=T,
            rope_scaling={**YARN, "mrope_section": [4, 6, 6]},
        ),
        "mrope-ramp",
        "error",
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_named(trap: str) -> None:
    broken, code, severity = TRAPS[trap]
    found = checked(broken)
    assert severities(found).get(code) == severity
    assert found.ok is not any(finding.severity == "error" for finding in found.findings)
    for finding in found.findings:
        assert finding.message
        assert finding.fix or finding.code in ("no-such-model", "unknown", "caution")


def both(value: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A config that says its scaling in both dictionaries."""
    theta = value.get("rope_theta", 10000.0)
    return {
        **value,
        "rope_theta": theta,
        "rope_scaling": settings,
        "rope_parameters": {**settings, "rope_theta": theta},
    }


#: Right in every way: what no rule may complain about.
HEALTHY: dict[str, dict[str, Any]] = {
    "plain": both(qwen3(), {"rope_type": "default"}) | {"rope_scaling": None},
    "yarn": both(qwen3(), YARN),
    "llama3": both(llama(), LLAMA3),
    "latent": both(
        deepseek(), {**YARN, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 1.0}
    ),
    "nested": family_config(
        FAMILIES["gemma3"], max_position_embeddings=T, rope_scaling={"rope_type": "linear", "factor": 8.0}
    )
    | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
    },
    "in a wrapper": {
        "model_type": "mistral3",
        "text_config": both(family_config(FAMILIES["mistral"], max_position_embeddings=T, head_dim=32), YARN),
    },
    "query scale": ministral3(16384),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_right_is_left_in_peace(name: str) -> None:
    found = checked(HEALTHY[name])
    assert found.ok, [finding.message for finding in found.findings if finding.severity == "error"]
    quiet = {code for code, severity in severities(found).items() if severity != "info"}
    assert quiet <= {"no-such-model", "unknown"}


def test_code_of_the_checkpoints_own_is_named() -> None:
    source = contents(llama(auto_map={"AutoModelForCausalLM": "modeling_own.Own"}))
    note = Note(code="auto-map", message="auto_map names code of the checkpoint's own")
    with_note = Contents(**{field: getattr(source, field) for field in source.__struct_fields__} | {"notes": (note,)})
    assert severities(checked(with_note))["auto-map"] == "warning"


def test_limits_beside_the_config_are_named() -> None:
    found = checked(qwen3(rope_scaling=YARN), documents={"tokenizer_config.json": {"model_max_length": L}})
    (finding,) = (finding for finding in found.findings if finding.code == "tokenizer-limit")
    assert finding.fix == f"set model_max_length to {T}"
    assert found.ok


def test_numbers_of_the_model_cards_form() -> None:
    """40960 stated, yarn 4 over 32768: the tables agree, at A = 0.1 ln 4 + 1, and servers stop at the length."""
    found = checked(TRAPS["the model card's form"][0])
    assert found.target_context == T
    for report in found.runtimes:
        if report.required:
            assert (report.ok, report.max_context) == (report.runtime not in ("vllm", "sglang"), 40960)
            assert report.groups[0].inv_freq_error == 0.0
            assert report.groups[0].attention_factor == pytest.approx(1.1386294361119891, rel=1e-12)


def test_numbers_of_a_rope_that_is_not_seen() -> None:
    """What transformers 4 takes for the theta of a config in the newer form: 10000 instead of 1000000.

    The slowest of 16 pairs: (1e4 / 1e6)^(-30/32) = 74.99 times too fast without yarn, 300 times with yarn's 4.
    """
    found = checked(newer_only(qwen3(rope_scaling=YARN)))
    report = next(r for r in found.runtimes if r.versions == "4.56-4.57")
    assert report.groups[0].inv_freq_error == pytest.approx(4 * 100 ** (30 / 32) - 1, rel=1e-9)
    assert report.groups[0].attention_factor == 1.0


def test_older_versions_are_information_unless_asked_for() -> None:
    """vLLM to 0.29 reads no attention_factor; 0.30 does."""
    broken = qwen3(rope_scaling={**YARN, "attention_factor": 1.0})
    relaxed = checked(broken, "vllm")
    assert relaxed.ok
    assert {r.runtime for r in relaxed.runtimes if r.required} == {"vllm"}
    assert {f.severity for f in relaxed.findings if "vllm" not in str(f.runtimes)} <= {"info"}
    required = {(r.runtime, r.versions) for r in checked(broken, "transformers@4.57").runtimes if r.required}
    assert required == {(reader.runtime, reader.versions) for reader in readers_of(["transformers"])}


def test_a_faulty_runtime_that_is_not_required_is_no_error() -> None:
    broken = newer_only(qwen3(rope_scaling=YARN))
    assert not checked(broken, "transformers").ok
    assert checked(broken, "vllm").ok
    assert severities(checked(broken, "vllm"))["new-form-only"] == "warning"


def test_findings_that_several_runtimes_share_are_one() -> None:
    found = checked(TRAPS["the model card's form"][0])
    (below,) = (f for f in found.findings if f.code == "length-below" and f.severity == "error")
    assert set(below.runtimes) >= {"vllm >=0.30", "sglang >=0.5"}
    assert below.runtime is None
    assert below.fix == f"raise max_position_embeddings to {T}"


def test_against_a_plan() -> None:
    source = contents(qwen3())
    source = contents({**source.config, "max_position_embeddings": L})
    plan = make_plan(source, inspect(source), Recipe(method="yarn", target=T))
    meant = meant_by_plan(plan, "the plan")
    output = contents(converted(source.config, plan))
    right = check(output, inspect(output), required=DEFAULT_RUNTIMES, against=meant)
    assert right.ok
    assert right.against == "the plan"
    wrong = check(source, inspect(source), required=DEFAULT_RUNTIMES, against=meant)
    assert not wrong.ok
    # Plain is four times faster than yarn where yarn divides by four.
    assert wrong.runtimes[0].groups[0].inv_freq_error == pytest.approx(3.0, rel=1e-9)


def test_what_a_config_means_is_what_transformers_reads_at_the_length_it_reaches() -> None:
    source = contents(TRAPS["the model card's form"][0])
    meant = meant_by(source, inspect(source))
    assert meant is not None
    assert meant.target == T
    assert meant.source == "what current transformers reads"


def test_a_model_without_a_rope_has_nothing_to_disagree_on() -> None:
    found = checked({"model_type": "gpt2", "n_positions": 1024, "n_embd": 64, "n_layer": 1, "n_head": 2})
    assert found.ok
    assert all(not report.groups for report in found.runtimes)
    assert found.findings[-1].code == "position-learned"


def test_serve_commands_carry_the_length() -> None:
    serve = {r.runtime: r.serve for r in checked(qwen3(rope_scaling=YARN)).runtimes if r.required}
    assert serve["vllm"] == f"vllm serve Tiny --max-model-len {T}"
    assert serve["sglang"] == f"python -m sglang.launch_server --model-path Tiny --context-length {T}"
    assert serve["mlx-lm"] == "mlx_lm.server --model Tiny"
    below = checked(TRAPS["the model card's form"][0])
    commands = [r.serve for r in below.runtimes if r.runtime == "vllm" and r.required]
    assert commands == [f"VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 vllm serve Tiny --max-model-len {T}"]


@pytest.mark.parametrize(
    ("source", "method", "options", "code"),
    [
        (deepseek(), "yarn", {}, "latent-without-pair"),
        (config(max_position_embeddings=4096), "longrope", {"long_factor": [4.0] * 16}, "longrope-switches"),
    ],
)
def test_a_plan_warns_of_what_no_form_mends(
    source: dict[str, Any], method: str, options: dict[str, Any], code: str
) -> None:
    plan = planned(source, Recipe(method=method, factor=4.0, options=options))
    assert code in [warning.code for warning in plan.warnings]
    calm = planned(config(max_position_embeddings=4096), Recipe(method="yarn", factor=4.0))
    assert code not in [warning.code for warning in calm.warnings]


def test_a_plan_that_scales_nothing_says_who_reads_the_source_otherwise() -> None:
    """Llama 4's ropes see chunks only, so none is scaled; MLX-LM fails on its config without a rope_scaling."""
    source = family_config(FAMILIES["llama4"])
    assert "rope_scaling" not in source
    plan = planned(source, Recipe(method="yarn", factor=4.0))
    assert plan.method == "none"
    assert plan.misread == ("mlx-lm >=0.32",)
    assert any("mlx-lm" in warning.message for warning in plan.warnings if warning.code == "unreadable")
    newer = newer_only(llama(rope_scaling=LLAMA3))
    within = planned(newer, Recipe(method="auto", target=T), base="trained")
    assert within.misread == ("transformers 4.56-4.57", "mlx-lm >=0.32")


def test_who_was_excused_in_the_plan_is_not_required_of_its_result() -> None:
    """MLX-LM has no truncate, so it reads gpt-oss otherwise than it was trained: announced, and nobody named it."""
    source = family_config(FAMILIES["gpt_oss"], max_position_embeddings=131072)
    plan = planned(source, Recipe(method="yarn", factor=2.0))
    assert plan.misread == ("mlx-lm >=0.32",)
    output = contents(converted(source, plan))
    meant = meant_by_plan(plan, "the plan")
    held = check(output, inspect(output), required=DEFAULT_RUNTIMES, against=meant)
    assert not held.ok
    excused = check(output, inspect(output), required=DEFAULT_RUNTIMES, against=meant, excused=plan.misread)
    assert excused.ok


def test_one_form_for_nearly_everyone() -> None:
    """Longrope's equal lists, with the original length where TGI and ExLlamaV2 look for it too."""
    names = ("transformers@4.43", "vllm@0.11", "sglang", "mlx-lm", "exllamav3", "exllamav2", "tgi", "tensorrt-llm")
    source = llama() | {"max_position_embeddings": L}
    plan = planned(source, Recipe(method="yarn", target=T, runtimes=names))
    after = plan.groups[0].after
    assert after is not None
    assert after.encoding == "longrope carrier, original length at the top level"
    assert plan.misread == ()
    assert next(w.message for w in plan.warnings if w.code == "length-below").startswith("vllm")
    edited = converted(source, plan)
    # sqrt(ln 131072 / ln 8857) = 0.1 ln 4 + 1, to the carrier's 1e-4.
    assert edited["original_max_position_embeddings"] == round(131072 ** (1 / 1.1386294361119891**2))
    output = contents(edited)
    found = check(output, inspect(output), required=names, against=meant_by_plan(plan, "the plan"))
    assert found.ok
    assert len([report for report in found.runtimes if report.required and report.ok]) >= 12


def test_a_base_that_a_scaling_hides_is_brought_back() -> None:
    """What transformers 5 saves, and a scaling pasted beside it: 5.x itself then takes a base of 10000."""
    saved = {k: v for k, v in qwen3().items() if k != "rope_theta"}
    saved["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000000.0}
    found = checked({**saved, "rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    assert severities(found)["theta-lost"] == "error"
    report = found.runtimes[0]
    assert (report.versions, report.ok) == ("5.x", False)
    # (1e4 / 1e6)^(-30/32) = 74.99: the slowest pair turns so much faster.
    assert report.groups[0].inv_freq_error == pytest.approx(100 ** (30 / 32) - 1, rel=1e-9)
    pasted = {**saved, "rope_scaling": YARN, "max_position_embeddings": L}
    plan = planned(pasted, Recipe(method="yarn", target=T))
    assert converted(pasted, plan)["rope_theta"] == 1000000.0
    assert "theta-lost" in [warning.code for warning in plan.warnings]


def test_naming_nobody_who_reads_it_checks_nothing() -> None:
    falcon = family_config(FAMILIES["falcon"])
    assert severities(checked(falcon, "mlx-lm"))["nobody-reads"] == "error"
    assert "nobody-reads" not in severities(checked(falcon))


def test_llama_cpp_alone_is_held_to_what_an_export_could_hold() -> None:
    """Gemma 3's sliding layers get any factor on cos and sin in GGUF: a temperature of 1 can't be had there."""
    nested = HEALTHY["nested"]
    yarn = {**YARN, "attention_factor": 1.0, "rope_theta": 1000000.0}
    custom = {**nested, "rope_scaling": yarn, "rope_parameters": {**nested["rope_parameters"], "full_attention": yarn}}
    found = checked(custom, "llama.cpp")
    assert not found.ok
    (required,) = (report for report in found.runtimes if report.required)
    assert required.runtime == "llama.cpp"
    assert checked(HEALTHY["yarn"], "llama.cpp").ok


def test_a_vllm_table_of_cosines_ends_where_yarn_does() -> None:
    """4 x 32768 positions, whatever length is stated."""
    found = checked(qwen3(rope_scaling=YARN) | {"max_position_embeddings": 2 * T}, "vllm")
    assert not found.ok
    assert found.runtimes[0].max_context == T


def test_a_linear_length_that_only_another_key_raises() -> None:
    """The form of Vicuna's 16k models: 4096 stated, linear 4, and 16384 as max_sequence_length."""
    old = config(
        max_position_embeddings=4096, max_sequence_length=16384, rope_scaling={"rope_type": "linear", "factor": 4.0}
    )
    assert checked(old).target_context == 16384


@pytest.mark.parametrize("name", [*TRAPS, *HEALTHY])
def test_a_required_runtime_that_differs_is_never_passed_over(name: str) -> None:
    value = HEALTHY[name] if name in HEALTHY else TRAPS[name][0]
    for names in (DEFAULT_RUNTIMES, ("transformers",), ("vllm",), ("sglang",), ("mlx-lm",), ("exllamav3",)):
        found = checked(value, *names)
        if any(report.required and not report.ok for report in found.runtimes):
            assert not found.ok, names
