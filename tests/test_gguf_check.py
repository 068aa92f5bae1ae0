"""``check`` of a GGUF file: dead keys, missing lengths, and what llama.cpp really computes from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ctxextend.contents import Contents
from ctxextend.errors import RefusedError, UsageError
from ctxextend.findings import Check, Meant
from ctxextend.gguf_check import check_gguf, meant_by_gguf
from ctxextend.rope import RopeTable
from tests.gguf_factory import gguf

L, T = 1024, 4096
#: As llama.cpp's converter writes a yarn of transformers with an attention factor of 1 and betas of its own.
YARN: Mapping[str, Any] = {
    "context_length": T,
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": L,
}


def contents(architecture: str = "llama", **changes: Any) -> Contents:
    factors: Mapping[str, Sequence[float] | None] = changes.pop("factors", {})
    header = gguf(architecture, factors=factors, **changes)
    return Contents(name="tiny", source="tiny.gguf", storage="gguf", files=(), documents={}, gguf=header)


def checked(*required: str, **changes: Any) -> Check:
    return check_gguf(contents(**changes), required=required or ("llama.cpp",))


def severities(found: Check) -> dict[str, str]:
    worst: dict[str, str] = {}
    for finding in found.findings:
        worst.setdefault(finding.code, finding.severity)
    return worst


@pytest.mark.parametrize(
    ("changes", "code", "severity"),
    [
        ({**YARN, "rope__scaling__yarn_attn_factor": 1.0}, "dead-keys", "error"),
        ({**YARN, "rope__scaling__yarn_beta_fast": 8.0}, "dead-keys", "error"),
        ({**YARN, "rope__scaling__yarn_beta_fast": 32.0}, "dead-keys", "warning"),
        ({**YARN, "rope__scaling__original_context_length": None}, "original-length-missing", "error"),
        ({**YARN, "context_length": L}, "length-below", "error"),
        ({**YARN, "context_length": L}, "length-mismatch", "error"),
        ({"rope__scaling__type": "ntk", "rope__scaling__factor": 4.0}, None, ""),
        ({"rope__scaling__type": "longrope"}, "no-lists", "warning"),
        ({"rope__scaling__factor": 4.0, "factors": {"rope_freqs.weight": [2.0] * 16}}, "factor-and-tensor", "warning"),
        (
            {"architecture": "qwen3", "attention__key_length": 32, "factors": {"rope_freqs.weight": [2.0] * 16}},
            "fails",
            "error",
        ),
    ],
)
def test_a_trap_is_named(changes: dict[str, Any], code: str | None, severity: str) -> None:
    if code is None:
        with pytest.raises(RefusedError, match="isn't known"):
            checked(**changes)
        return
    found = checked(**changes)
    assert severities(found).get(code) == severity
    assert found.ok is (severity != "error")


@pytest.mark.parametrize("changes", [{}, YARN, {"rope__scaling__factor": 4.0, "context_length": T}])
def test_what_is_right_is_right(changes: dict[str, Any]) -> None:
    found = checked(**changes)
    assert found.ok
    assert {finding.severity for finding in found.findings} <= {"info", "warning"}
    assert "dead-keys" not in severities(found)


def test_what_dead_keys_cost_and_what_would_say_it() -> None:
    """Meant: A = 1. llama.cpp: 0.1 ln 4 + 1, whatever yarn_attn_factor says; its reciprocal undoes that."""
    found = checked(**{**YARN, "rope__scaling__yarn_attn_factor": 1.0})
    report = found.runtimes[0]
    assert report.groups[0].attention_factor == pytest.approx(1.1386294361119891, rel=1e-7)
    assert report.groups[0].inv_freq_error == 0.0
    (ignored,) = (finding for finding in found.findings if finding.code == "attention-factor-ignored")
    assert ignored.fix is not None
    assert "llama.rope.scaling.attn_factor = 0.87824" in ignored.fix
    assert "remove llama.rope.scaling.yarn_attn_factor" in ignored.fix


def test_serve_commands_know_of_the_context_shift() -> None:
    serve = {report.runtime: report.serve for report in checked(**YARN).runtimes}
    assert serve["llama.cpp"] == f"llama-server -m tiny.gguf -c {T} --no-context-shift"
    assert serve["ollama"] == f"FROM ./tiny.gguf\nPARAMETER num_ctx {T}\n"


def test_only_what_is_asked_for_is_required() -> None:
    broken = {**YARN, "rope__scaling__yarn_attn_factor": 1.0}
    assert not checked("ollama", **broken).ok
    # Beside that nobody who was asked for reads such a file, nothing is an error.
    errors = {finding.code for finding in checked("vllm", **broken).findings if finding.severity == "error"}
    assert errors <= {"nobody-reads"}


@pytest.mark.parametrize(("name", "code"), [("llama.cpp@banana", "bad-version"), ("ollama@", "bad-version")])
def test_a_version_that_is_none_is_refused(name: str, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked(name)
    assert caught.value.code == code


def test_a_version_that_a_reader_covers_is_that_reader() -> None:
    assert [report.runtime for report in checked("llama.cpp@12000").runtimes if report.required] == ["llama.cpp"]
    with pytest.raises(UsageError, match="isn't known"):
        checked("llama.cpp@9000")


def test_a_rope_that_is_off_is_named_with_the_key_to_remove() -> None:
    """src/models/granite.cpp: the rope is applied only where rope.scaling.finetuned is true or missing."""
    found = checked(architecture="granite", rope__scaling__finetuned=False)
    (off,) = (finding for finding in found.findings if finding.code == "rope-off")
    assert (off.severity, off.fix) == ("error", "remove granite.rope.scaling.finetuned")
    others = {finding.fix for finding in found.findings if finding.code == "reads-otherwise"}
    assert others == {"remove granite.rope.scaling.finetuned"}
    assert "rope-off" not in severities(checked(architecture="granite", rope__scaling__finetuned=True))
    assert "rope-off" not in severities(checked(architecture="llama", rope__scaling__finetuned=False))


def test_an_original_length_of_0_is_missing() -> None:
    found = checked(**{**YARN, "rope__scaling__original_context_length": 0})
    assert severities(found)["original-length-missing"] == "error"
    # The context length isn't proposed for it.
    assert not any(f"original_context_length = {T}" in (finding.fix or "") for finding in found.findings)


def test_the_factor_that_is_meant_is_proposed_where_a_key_says_another() -> None:
    """Meant: 0.1 ln 4 + 1, which needs no key; the file says half of it."""
    meant = meant_by_gguf(contents(**YARN))
    found = check_gguf(contents(**{**YARN, "rope__scaling__attn_factor": 0.5}), required=("llama.cpp",), against=meant)
    (finding,) = (finding for finding in found.findings if finding.code == "attention-factor-ignored")
    key = "llama.rope.scaling.attn_factor"
    assert finding.fix == f"the factor beside llama.cpp's own is {key}: remove {key}"


def test_what_no_key_says_is_a_tensor_where_one_is_loaded() -> None:
    meant = meant_by_gguf(contents())
    other = RopeTable(inv_freq=tuple(f / (1.0 + i) for i, f in enumerate(meant.tables["full_attention"].inv_freq)))
    against = Meant(tables={"full_attention": other}, target=L, source="a plan")
    (fix,) = {
        finding.fix
        for finding in check_gguf(contents(), required=("llama.cpp",), against=against).findings
        if finding.code == "reads-otherwise"
    }
    assert "add the tensor rope_freqs.weight (16 numbers, convert writes it)" in (fix or "")
    qwen3 = contents("qwen3", attention__key_length=32)
    (fix,) = {
        finding.fix
        for finding in check_gguf(qwen3, required=("llama.cpp",), against=against).findings
        if finding.code == "reads-otherwise"
    }
    assert "nothing in this file can say what is meant" in (fix or "")


def test_against_something_else() -> None:
    plain = contents()
    meant = meant_by_gguf(plain)
    assert meant.target == L
    other = RopeTable(inv_freq=tuple(f / 4.0 for f in meant.tables["full_attention"].inv_freq))
    wrong = Meant(tables={"full_attention": other}, target=L, source="a plan")
    found = check_gguf(plain, required=("llama.cpp",), against=wrong)
    assert not found.ok
    assert found.runtimes[0].groups[0].inv_freq_error == pytest.approx(3.0, rel=1e-6)
