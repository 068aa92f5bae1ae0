"""``ctxextend check`` as a user calls it: exit codes, the document, ``--against``, ``--fix``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.support import LLAMA, TRAINED, build, call, edit_config, read_json, run, tree

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": TRAINED}


@pytest.fixture
def card(source: Path) -> Path:
    """The form that model cards tell readers to write: yarn, and the length left as it was."""
    edit_config(source, rope_scaling=YARN)
    return source


def test_the_document(card: Path) -> None:
    ran = run("check", card, "--json", code=5)
    found = ran.json
    assert found["schema"] == "ctxextend.check/1"
    assert found["ok"] is False
    assert found["target_context"] == 4 * TRAINED
    assert not ran.err
    for report in found["runtimes"]:
        assert {"runtime", "versions", "required", "ok", "max_context", "groups", "serve"} <= set(report)
        for group in report["groups"]:
            assert {"label", "attention_factor", "inv_freq", "inv_freq_error"} <= set(group)
            assert len(group["inv_freq"]) == 8
    for finding in found["findings"]:
        assert {"code", "severity", "runtime", "message", "fix"} <= set(finding)
    codes = {finding["code"] for finding in found["findings"]}
    assert {"length-mismatch", "length-below", "tokenizer-limit"} <= codes


def test_the_page(card: Path) -> None:
    ran = run("check", card, code=5)
    assert f"at {4 * TRAINED} tokens" in ran.out
    assert "differs" in ran.out
    assert "[length-mismatch]" in ran.out
    assert f"fix: set max_position_embeddings to {4 * TRAINED}" in ran.out
    assert f"vllm serve {card} --max-model-len 2048" in " ".join(ran.out.split())
    assert "\x1b" not in ran.out
    assert "more for information: -v" in ran.out
    verbose = call("check", card, "-v", code=5).out
    assert "rope_scaling" in verbose
    assert verbose.count("info ") > ran.out.count("info ")


def test_what_is_right_ends_with_0(pristine: Path) -> None:
    ran = call("check", pristine, code=0)
    assert "agrees" in ran.out
    assert "error" not in ran.out


def test_only_required_runtimes_fail_it(source: Path) -> None:
    config = read_json(source / "config.json")
    settings = {**YARN, "rope_theta": config["rope_theta"]}
    edit_config(source, rope_scaling=None, rope_theta=None, rope_parameters=settings, max_position_embeddings=2048)
    assert call("check", source, "--runtimes", "vllm", code=0)
    assert call("check", source, "--runtimes", "transformers", code=5)
    assert call("check", source, "--runtimes", "vllm,transformers@4.56", code=5)


def test_an_output_of_ours_is_held_to_its_plan(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("convert", source, "--method", "yarn", "--target", "2k", "--out", out, code=0)
    assert "the plan that it was made by" in " ".join(call("check", out, code=0).out.split())
    edited = read_json(out / "config.json")
    edit_config(out, rope_theta=5e5, rope_parameters={**edited["rope_parameters"], "rope_theta": 5e5})
    assert "differs" in call("check", out, code=5).out


def test_against_a_plan_and_against_another_checkpoint(source: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(call("plan", source, "--method", "yarn", "--target", "2k", "--json", code=0).out)
    call("check", source, "--against", plan, code=5)
    out = tmp_path / "out"
    call("convert", source, "--plan", plan, "--out", out, code=0)
    call("check", out, "--against", plan, code=0)
    call("check", out, "--against", out / "ctxextend.json", code=0)
    call("check", source, "--against", out, code=5)
    call("check", out, "--against", out, code=0)


def test_fix_writes_a_mended_copy(card: Path, tmp_path: Path) -> None:
    before = tree(card)
    out = tmp_path / "fixed"
    diff = call("check", card, "--fix", "--dry-run", code=0).out
    assert '+  "max_position_embeddings": 2048,' in diff
    assert not out.exists()
    ran = run("check", card, "--fix", "--out", out, code=0)
    assert ran.out.strip() == str(out)
    assert tree(card) == before
    assert call("check", out, code=0)
    assert read_json(out / "tokenizer_config.json")["model_max_length"] == 2048
    assert (out / "model-00001-of-00002.safetensors").read_bytes() == (
        card / "model-00001-of-00002.safetensors"
    ).read_bytes()
    manifest = read_json(out / "ctxextend.json")
    assert manifest["plan"]["method"] == "repair"
    assert manifest["verified"][0]["serve"] == "AutoModelForCausalLM.from_pretrained('.', dtype='auto')"


def test_fix_where_it_is_told_nothing_goes_to_a_name_of_its_own(card: Path, tmp_path: Path) -> None:
    ran = run("check", card, "--fix", cwd=tmp_path, code=0)
    assert ran.out.strip() == "source-fixed-2k"
    assert (tmp_path / "source-fixed-2k" / "config.json").is_file()


def test_what_can_be_read_in_two_ways_is_refused(source: Path, tmp_path: Path) -> None:
    edit_config(source, rope_scaling={"rope_type": "yarn", "factor": 4.0}, max_position_embeddings=2048)
    ran = call("check", source, "--fix", "--out", tmp_path / "fixed", code=3)
    assert "two ways" in ran.err
    assert "--original-context" in ran.err
    call("check", source, "--fix", "--original-context", "512", "--out", tmp_path / "fixed", code=0)
    settings = read_json(tmp_path / "fixed" / "config.json")["rope_scaling"]
    assert settings["original_max_position_embeddings"] == TRAINED


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--runtimes", "vlm"), 2, "did you mean vllm"),
        (("--runtimes", "transformers@new"), 2, "numbers and dots"),
        (("--runtimes", "transformers@3.1"), 2, "isn't known"),
        (("--out", "x"), 2, "add --fix"),
        (("--fix", "--against", "."), 2, "leave one away"),
        (("--against", "nowhere/at/all"), 1, "no such checkpoint"),
        (("--family", "lama"), 2, "did you mean llama"),
    ],
)
def test_wrong_calls(pristine: Path, args: tuple[str, ...], code: int, said: str) -> None:
    ran = call("check", pristine, *args, code=code)
    assert said in ran.err
    assert not ran.out


def test_a_plan_that_is_none(pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    ran = call("check", pristine, "--against", tmp_path / "plan.json", code=1)
    assert "the plan can't be read" in ran.err


def test_fix_of_what_is_right_writes_nothing(source: Path, tmp_path: Path) -> None:
    ran = call("check", source, "--fix", "--out", tmp_path / "fixed", code=0)
    assert "nothing" in ran.err
    assert not ran.out
    assert not (tmp_path / "fixed").exists()


def test_a_table_of_another_size_is_valid_json(pristine: Path, tmp_path: Path) -> None:
    other = build(tmp_path / "other", {**LLAMA, "num_attention_heads": 2, "num_key_value_heads": 1})
    ran = call("check", pristine, "--against", other, "--json", code=5)
    found = json.loads(ran.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["runtimes"][0]["groups"][0]["inv_freq_error"] is None
    assert "another table" in call("check", pristine, "--against", other, code=5).out


def test_an_output_is_held_to_the_runtimes_that_it_was_made_for(source: Path, tmp_path: Path) -> None:
    """Rope types that MLX-LM's phi doesn't read: its plan was made for transformers alone."""
    edit_config(source, model_type="phi", partial_rotary_factor=0.5)
    out = tmp_path / "out"
    call("convert", source, "--method", "yarn", "--target", "2k", "--runtimes", "transformers", "--out", out, code=0)
    call("check", out, code=0)
    call("check", out, "--runtimes", "transformers,mlx-lm", code=5)
