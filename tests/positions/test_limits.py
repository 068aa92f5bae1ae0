"""How long a text each runtime serves of a model without a rope, by the rules that were read in its source."""

from __future__ import annotations

from typing import Any

import pytest

from ctxextend.changes import tensor_changes_of
from ctxextend.check import check, meant_by_plan
from ctxextend.errors import RefusedError
from ctxextend.findings import Check
from ctxextend.formats.hf_positions import alibi_slopes
from ctxextend.inspection import inspect
from ctxextend.plan import edits_of
from ctxextend.position_plan import make_position_plan, verify_positions
from ctxextend.recipe import Recipe
from ctxextend.runtimes import DEFAULT_RUNTIMES
from tests.factories import planned
from tests.positions.factory import BART, BLOOM, FALCON, GPT2, M2M_100, MPT, OPT, ROBERTA, read
from tests.positions.test_plans import result

RUNTIMES = ("transformers 5.x", "vllm >=0.30", "sglang >=0.5", "mlx-lm >=0.32", "llama.cpp >=11434")
#: Not there.
NONE = "none"


def checked(published: Any, **documents: Any) -> Check:
    found, inspection = read(published, **documents)
    return check(found, inspection, required=DEFAULT_RUNTIMES)


def lengths(found: Check) -> dict[str, int | str | None]:
    return {
        f"{report.runtime} {report.versions}": NONE if report.absent else report.max_context
        for report in found.runtimes
        if f"{report.runtime} {report.versions}" in RUNTIMES
    }


@pytest.mark.parametrize(
    ("published", "served"),
    [
        (GPT2, (1024, 1024, 1024, 1024, 1024)),
        (OPT, (2048, 2048, 2048, NONE, NONE)),
        # vLLM takes 514 for tokens, which is two more than the table holds.
        (ROBERTA, (512, 512, NONE, NONE, 512)),
        # transformers computes ALiBi for any length, but for MPT's class.
        (BLOOM, (None, 2048, NONE, NONE, 2048)),
        (MPT, (2048, 2048, NONE, NONE, 2048)),
        (FALCON, (None, 2048, NONE, NONE, NONE)),
        (BART, (1024, NONE, NONE, NONE, NONE)),
        (M2M_100, (None, NONE, NONE, NONE, NONE)),
    ],
)
def test_what_each_serves(published: Any, served: tuple[int | str | None, ...]) -> None:
    found = checked(published)
    assert found.ok
    assert lengths(found) == dict(zip(RUNTIMES, served, strict=True))


def test_vllm_takes_the_smallest_and_what_sentence_transformers_says() -> None:
    config, tensors = GPT2
    assert lengths(checked(({**config, "seq_length": 300}, tensors)))["vllm >=0.30"] == 300
    assert lengths(checked(({**config, "seq_length": 300, "model_max_length": 700}, tensors)))["vllm >=0.30"] == 700
    bert = {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    table = {"embeddings.position_embeddings.weight": ("F32", (514, 8))}
    said = lengths(checked((bert, table), tokenizer_config={"model_max_length": 400}))
    assert (said["vllm >=0.30"], said["sglang >=0.5"]) == (400, 512)
    said = lengths(checked((bert, table), sentence_bert_config={"max_seq_length": 128}))
    assert said["vllm >=0.30"] == 128


def test_bloom_without_a_length_is_served_at_what_servers_assume() -> None:
    config = {key: value for key, value in BLOOM[0].items() if key != "seq_length"}
    assert lengths(checked((config, BLOOM[1])))["vllm >=0.30"] == 2048
    found, inspection = read((config, BLOOM[1]))
    plan = make_position_plan(found, inspection, Recipe(target=8192))
    assert result(found, plan).config["seq_length"] == 8192


def test_a_length_that_the_table_has_not() -> None:
    """The mistake of editing config.json alone: nobody loads it."""
    found = checked(({**GPT2[0], "n_positions": 4096, "n_ctx": 4096}, GPT2[1]))
    assert not found.ok
    failing = next(finding for finding in found.findings if finding.severity == "error")
    assert failing.code == "fails"
    assert {"transformers 5.x", "vllm >=0.30", "sglang >=0.5", "mlx-lm >=0.32"} <= set(failing.runtimes)
    assert "4096 rows, and wpe.weight has 1024" in failing.message


@pytest.mark.parametrize("published", [GPT2, OPT, ROBERTA, BLOOM, MPT, FALCON, BART, M2M_100])
def test_a_conversion_reaches_its_target_everywhere(published: Any) -> None:
    found, inspection = read(published, tokenizer_config={"model_max_length": 512})
    plan = make_position_plan(found, inspection, Recipe(target=4096))
    assert not plan.misread
    after = result(found, plan)
    assert edits_of(plan)
    verdicts = verify_positions(plan, after.config, {tensor.name: tensor for tensor in after.tensors})
    assert verdicts
    assert all(verdict.agrees and verdict.reading.max_context in (None, 4096) for verdict in verdicts)
    if tensor_changes_of(plan.actions):
        # The old tables under the new config.json: what verifying is for.
        before = verify_positions(plan, after.config, {tensor.name: tensor for tensor in found.tensors})
        assert any(not verdict.agrees for verdict in before) == (published != M2M_100)
    if published != M2M_100:
        stale = verify_positions(plan, found.config, {tensor.name: tensor for tensor in found.tensors})
        assert any(not verdict.agrees for verdict in stale)


def test_an_output_is_held_to_its_plan() -> None:
    found, inspection = read(GPT2)
    plan = make_position_plan(found, inspection, Recipe(target=4096))
    after = result(found, plan)
    held = check(after, inspect(after), required=plan.runtimes, against=meant_by_plan(plan, source="its plan"))
    assert (held.ok, held.target_context, held.against) == (True, 4096, "its plan")
    short = check(found, inspection, required=plan.runtimes, against=meant_by_plan(plan, source="its plan"))
    assert not short.ok
    assert {finding.code for finding in short.findings if finding.severity == "error"} == {"length-below"}


def test_a_table_is_not_held_to_a_rope() -> None:
    found, inspection = read(GPT2)
    rope = planned(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "max_position_embeddings": 2048,
        },
        Recipe(method="yarn", target=8192),
    )
    with pytest.raises(RefusedError) as caught:
        check(found, inspection, required=(), against=meant_by_plan(rope, source="another plan"))
    assert caught.value.code == "no-rope"


#: Press et al., section 3: 8 heads, and "for models with 16 heads we interpolate ... 1/2^0.5, 1/2^1, ... 1/2^8".
EIGHT = tuple(0.5**i for i in range(1, 9))


def test_slopes() -> None:
    assert alibi_slopes(8) == EIGHT
    assert alibi_slopes(16)[1::2] == EIGHT
    assert alibi_slopes(16)[0] == pytest.approx(2**-0.5)


@pytest.mark.parametrize("heads", [3, 4, 6, 8, 12, 20, 71])
def test_slopes_are_those_of_the_families(heads: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    bloom = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1].tolist()
    assert alibi_slopes(heads) == pytest.approx(bloom, rel=1e-6)
    mpt = (-build_mpt_alibi_tensor(heads, 2)[:, 0, 0]).tolist()
    assert alibi_slopes(heads, layout="mosaic") == pytest.approx(mpt, rel=1e-6)


def test_mlx_lm_needs_a_number_for_the_inner_width() -> None:
    """Its ModelArgs of gpt_bigcode has ``n_inner: int``, for which transformers writes null."""
    shapes: Any = {"transformer.wpe.weight": ("F32", (64, 32))}
    keys = {"model_type": "gpt_bigcode", "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    assert lengths(checked(({**keys, "n_inner": None}, shapes)))["mlx-lm >=0.32"] == NONE
    assert lengths(checked(({**keys, "n_inner": 128}, shapes)))["mlx-lm >=0.32"] == 64


@pytest.mark.parametrize(("largest", "said"), [(8, False), (16, True)])
def test_other_slopes_in_transformers(largest: int, said: bool) -> None:
    found = checked(({**MPT[0], "attn_config": {"alibi": True, "alibi_bias_max": largest}}, MPT[1]))
    about = [
        f for f in found.findings if "transformers 5.x" in f.runtimes and "attn_config.alibi_bias_max" in f.message
    ]
    assert bool(about) == said
