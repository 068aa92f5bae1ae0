"""Plans for published checkpoints without a rope, with numbers by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ctxextend.changes import Carry, DropTensor, EditJson, FillSinusoids, ResizeTable, Rewrite, tensor_changes_of
from ctxextend.contents import Contents, Document, FileInfo, TensorInfo
from ctxextend.errors import CheckpointError, CtxextendError, RefusedError, UsageError
from ctxextend.formats.json_edit import apply_edits, edit_text
from ctxextend.inspection import inspect
from ctxextend.methods import POSITION_METHODS, find_method
from ctxextend.plan import Plan, edits_of
from ctxextend.position_plan import make_position_plan
from ctxextend.recipe import Recipe
from tests.factories import contents
from tests.positions.factory import (
    BART,
    BLOOM,
    FALCON,
    GPT2,
    M2M_100,
    MARIAN,
    MPT,
    OPT,
    ROBERTA,
    Config,
    Shapes,
    planned,
    read,
)

FILE = "model.safetensors"


def edits(plan: Plan, file: str = "config.json") -> dict[str, Any]:
    """What a plan writes, but for the record."""
    return {
        action.pointer: action.after
        for action in plan.actions
        if isinstance(action, EditJson) and action.file == file and action.pointer != "/ctxextend"
    }


def result(found: Contents, plan: Plan) -> Contents:
    """The checkpoint that a plan leaves."""
    changed = edits_of(plan)
    texts = {name: edit_text(document.text, changed.get(name, ())) for name, document in found.documents.items()}
    documents = {
        name: Document(text=texts[name], value=apply_edits(document.value, changed.get(name, ())))
        for name, document in found.documents.items()
    }
    changes = tensor_changes_of(plan.actions)
    rows = {c.name: c.rows for c in changes if isinstance(c, ResizeTable | FillSinusoids)}
    dropped = {c.name for c in changes if isinstance(c, DropTensor)}
    tensors = tuple(
        TensorInfo(name=t.name, dtype=t.dtype, shape=(rows.get(t.name, (*t.shape, 0)[0]), *t.shape[1:]), file=t.file)
        if t.name in rows
        else t
        for t in found.tensors
        if t.name not in dropped
    )
    return msgspec.structs.replace(found, documents=documents, tensors=tensors)


def refused(published: Any, recipe: Recipe, **documents: Any) -> CtxextendError:
    with pytest.raises(CtxextendError) as caught:
        planned(published, recipe, **documents)
    assert caught.value.hint
    return caught.value


def test_gpt2() -> None:
    """1024 rows to 4096; both lengths, and the masks of each layer."""
    plan = planned(GPT2, Recipe(target=4096), tokenizer_config={"model_max_length": 1024})
    assert (plan.method, plan.position, plan.groups, plan.factor) == ("absolute", "learned", (), 4.0)
    assert plan.options == {"interpolation": "linear"}
    assert (plan.trained_context, plan.target_context, plan.arithmetic) == (1024, 4096, "4096 / 1024 = 4")
    assert edits(plan) == {"/n_positions": 4096, "/n_ctx": 4096}
    assert edits(plan, "tokenizer_config.json") == {"/model_max_length": 4096}
    assert tensor_changes_of(plan.actions) == (
        ResizeTable(file=FILE, name="wpe.weight", rows_before=1024, rows=4096, reserved=0, interpolation="linear"),
        DropTensor(file=FILE, name="h.0.attn.bias"),
        DropTensor(file=FILE, name="h.11.attn.bias"),
    )
    carried = [name for action in plan.actions if isinstance(action, Carry) for name in action.files]
    assert FILE not in carried
    assert [action.files for action in plan.actions if isinstance(action, Rewrite)] == [(FILE,)]
    assert [warning.code for warning in plan.warnings] == ["untrained-positions"]


def test_reserved_rows() -> None:
    """OPT's two stand beside its length, RoBERTa's are part of it."""
    opt = planned(OPT, Recipe(target=8192, method="absolute", options={"interpolation": "cubic"}))
    assert edits(opt) == {"/max_position_embeddings": 8192}
    assert tensor_changes_of(opt.actions) == (
        ResizeTable(
            file=FILE,
            name="model.decoder.embed_positions.weight",
            rows_before=2050,
            rows=8194,
            reserved=2,
            interpolation="cubic",
        ),
    )
    limits = {"tokenizer_config": {"model_max_length": 512}, "sentence_bert_config": {"max_seq_length": 512}}
    roberta = planned(ROBERTA, Recipe(factor=4), **limits)
    assert (roberta.trained_context, roberta.target_context) == (512, 2048)
    assert edits(roberta) == {"/max_position_embeddings": 2050}
    assert edits(roberta, "tokenizer_config.json") == {"/model_max_length": 2048}
    assert edits(roberta, "sentence_bert_config.json") == {"/max_seq_length": 2048}
    table, counted = tensor_changes_of(roberta.actions)
    assert isinstance(table, ResizeTable)
    assert (table.rows_before, table.rows, table.reserved) == (514, 2050, 2)
    assert counted == DropTensor(file=FILE, name="roberta.embeddings.position_ids")


def test_roberta_counts_from_its_own_padding_token() -> None:
    config, _tensors = ROBERTA
    other = ({**config, "pad_token_id": 3}, {"roberta.embeddings.position_embeddings.weight": ("F32", (516, 8))})
    found, inspection = read(({**other[0], "max_position_embeddings": 516}, other[1]))
    assert inspection.trained_context == 512
    (table,) = tensor_changes_of(make_position_plan(found, inspection, Recipe(target=1024)).actions)
    assert isinstance(table, ResizeTable)
    assert (table.reserved, table.rows) == (4, 1028)


def test_every_copy_of_every_table() -> None:
    config, tensors = BART
    twice = {**tensors, "encoder.embed_positions.weight": ("F32", (1026, 768))}
    plan = planned((config, twice), Recipe(target=2048))
    tables = tensor_changes_of(plan.actions)
    assert {change.name for change in tables} == set(twice)
    assert {change.rows for change in tables if isinstance(change, ResizeTable)} == {2050}


@pytest.mark.parametrize(
    ("published", "trained", "key"),
    [(BLOOM, 2048, "/seq_length"), (MPT, 2048, "/max_seq_len"), (FALCON, 2048, "/max_position_embeddings")],
)
def test_alibi(published: Any, trained: int, key: str) -> None:
    plan = planned(published, Recipe(target=8192))
    assert (plan.method, plan.position, plan.options) == ("alibi", "alibi", {"slopes": "kept"})
    assert plan.trained_context == trained
    assert edits(plan) == {key: 8192}
    assert not tensor_changes_of(plan.actions)
    error = refused(published, Recipe(target=8192, method="alibi", options={"slopes": "interpolated"}))
    assert (error.code, error.exit_code) == ("slopes-not-carried", 3)


def test_what_distance_costs() -> None:
    """Press et al., section 3: 8 heads have 1/2, 1/4 ... 1/256. Falcon divides by the root of 64, as its scores."""
    _found, bloom = read(({**BLOOM[0], "n_head": 8}, {}))
    said = {note.code: note.message for note in bloom.notes}
    assert "8 heads take 0.5 to 0.003906 nats" in said["alibi-slopes"]
    assert "16 to 2048 tokens back" in said["alibi-slopes"]
    assert "8 nats off at 2048 tokens and 32 at 8192" in said["position-cost"]
    _found, falcon = read(FALCON)
    # 2^-8 / 8 * 2048 = 1
    assert "1 nats off at 2048 tokens and 4 at 8192" in {n.code: n.message for n in falcon.notes}["position-cost"]


def test_stored_sinusoids() -> None:
    raised = planned(MARIAN, Recipe(target=2048))
    interpolated = planned(MARIAN, Recipe(target=2048, method="sinusoidal", options={"positions": "interpolated"}))
    for plan, step in ((raised, 1.0), (interpolated, 0.25)):
        assert edits(plan) == {"/max_position_embeddings": 2048}
        assert tensor_changes_of(plan.actions) == tuple(
            FillSinusoids(
                file=FILE,
                name=name,
                rows=2048,
                dim=512,
                layout="halves",
                positions_per_row=step,
                rows_kept=512 if plan is raised else 0,
            )
            for name in MARIAN[1]
        )


def test_computed_sinusoids() -> None:
    """M2M-100's class computes its own, so a stored copy goes, and nothing else can be carried."""
    plan = planned(M2M_100, Recipe(target=4096))
    assert tensor_changes_of(plan.actions) == tuple(DropTensor(file=FILE, name=name) for name in M2M_100[1])
    options = {"positions": "interpolated"}
    assert refused(M2M_100, Recipe(target=4096, method="sinusoidal", options=options)).code == "positions-not-carried"
    unstored: tuple[Config, Shapes] = (MARIAN[0], {})
    assert refused(unstored, Recipe(target=4096, method="sinusoidal", options=options)).code == "positions-not-carried"
    assert not tensor_changes_of(planned(unstored, Recipe(target=4096)).actions)


def test_the_table_counts() -> None:
    """Where config.json says something else, the table is what was trained."""
    config, tensors = GPT2
    for stated in (512, 2048):
        found, inspection = read(({**config, "n_positions": stated}, tensors))
        assert inspection.trained_context == inspection.current_context == 1024
        assert any(note.code == "length-contradicts-table" for note in inspection.notes)
        assert edits(make_position_plan(found, inspection, Recipe(target=4096)))["/n_positions"] == 4096
        # Within the trained length nothing else is done, but what no runtime loads is mended.
        assert edits(make_position_plan(found, inspection, Recipe(target=1024)))["/n_positions"] == 1024
    silent = {key: value for key, value in config.items() if key not in ("n_positions", "n_ctx")}
    assert read((silent, {"wpe.weight": ("F32", (300, 8))}))[1].trained_context == 300
    with pytest.raises(CheckpointError) as caught:
        read((BART[0], {**BART[1], "model.decoder.embed_positions.weight": ("F32", (514, 768))}))
    assert caught.value.code == "contradicting-tables"


def test_within_the_trained_length() -> None:
    plan = planned(GPT2, Recipe(target=1024))
    assert (plan.method, plan.factor) == ("none", 1.0)
    assert all(isinstance(action, Carry) for action in plan.actions)
    assert refused(GPT2, Recipe(target=512, method="absolute")).code == "within-trained"


@pytest.mark.parametrize("published", [GPT2, ROBERTA, MARIAN, BLOOM])
def test_a_second_conversion(published: Any) -> None:
    """To the same target it changes nothing; to another it starts from the base, where the weights still hold that."""
    found, inspection = read(published, tokenizer_config={"model_max_length": 512})
    first = make_position_plan(found, inspection, Recipe(target=4096))
    once = result(found, first)
    again = inspect(once)
    assert (again.trained_context, again.current_context) == (inspection.trained_context, 4096)
    same = make_position_plan(once, again, Recipe(target=4096))
    assert all(isinstance(action, Carry) for action in same.actions)
    assert same.digest == first.digest
    if published in (GPT2, ROBERTA):
        for recipe in (
            Recipe(target=8192),
            Recipe(target=inspection.trained_context),
            Recipe(target=4096, method="absolute", options={"interpolation": "tiled"}),
        ):
            with pytest.raises(RefusedError) as caught:
                make_position_plan(once, again, recipe)
            assert caught.value.code == "baked-source"
        return
    further = result(once, make_position_plan(once, again, Recipe(target=8192)))
    straight = result(found, make_position_plan(found, inspection, Recipe(target=8192)))
    assert further.tensors == straight.tensors
    assert further.config == straight.config
    back = result(once, make_position_plan(once, again, Recipe(target=inspection.trained_context)))
    assert back.tensors == found.tensors
    assert back.config == found.config


@pytest.mark.parametrize(
    ("recipe", "code"),
    [
        (Recipe(target=4096, carrier="native"), "bad-option"),
        (Recipe(target=4096, layers=("full_attention",)), "bad-option"),
        (Recipe(target=4096, sliding_window="off"), "bad-option"),
        (Recipe(target=4096, base="unscaled"), "bad-option"),
        (Recipe(target=4096, bake="all"), "bad-option"),
        (Recipe(target=4096, options={"interpolation": "tiled"}), "bad-parameter"),
        (Recipe(target=4096, method="absolute", options={"interpolation": "wavy"}), "bad-parameter"),
        (Recipe(target=4096, method="absolute", options={"slopes": "kept"}), "unknown-parameter-of-absolute"),
        (Recipe(target=4096, method="yarn"), "no-rope"),
        (Recipe(target=4096, method="alibi"), "other-positions"),
        (Recipe(target=4096, method="absolut"), "unknown-method"),
        (Recipe(), "no-target"),
    ],
)
def test_options_that_say_nothing(recipe: Recipe, code: str) -> None:
    assert refused(GPT2, recipe).code == code


def test_methods_of_another_kind() -> None:
    assert "--method absolute" in str(refused(GPT2, Recipe(target=4096, method="yarn")).hint)
    for name in POSITION_METHODS:
        with pytest.raises(RefusedError) as caught:
            find_method(name)
        assert caught.value.code == "other-positions"


def test_tables_that_cannot_be_resized() -> None:
    config, _tensors = GPT2
    assert refused((config, {}), Recipe(target=4096)).code == "no-table"
    packed = {"wpe.weight": ("U32", (1024, 96))}
    assert refused((config, packed), Recipe(target=4096)).code == "quantised-table"
    with pytest.raises(RefusedError) as caught:
        inspect(contents(config, tensors=GPT2[1]), original_context=512)
    assert caught.value.code == "trained-length-known"
    relative = ({**ROBERTA[0], "position_embedding_type": "relative_key"}, ROBERTA[1])
    assert refused(relative, Recipe(target=1024)).code == "relative-positions"
    # Such as jina-embeddings-v2: a BERT by its type, with code of its own.
    alibi = ({**ROBERTA[0], "position_embedding_type": "alibi"}, ROBERTA[1])
    assert refused(alibi, Recipe(target=1024)).code == "own-positions"
    off = ({**MPT[0], "attn_config": {"alibi": False}}, MPT[1])
    assert refused(off, Recipe(target=4096)).code == "no-alibi"


def test_the_trained_length_of_alibi_may_be_told() -> None:
    found = contents(*BLOOM[:1], tensors=BLOOM[1])
    plan = make_position_plan(found, inspect(found, original_context=1024), Recipe(factor=4))
    assert (plan.trained_context, plan.target_context) == (1024, 4096)


@pytest.mark.parametrize("model_type", ["t5", "deberta-v2", "xlnet", "led", "reformer"])
def test_relative_positions_are_refused_with_the_reason(model_type: str) -> None:
    error = refused(({"model_type": model_type}, {}), Recipe(target=4096))
    assert error.code == "refused-family"


def test_copies_for_other_frameworks_are_left_out() -> None:
    found, inspection = read(GPT2)
    names = ("pytorch_model.bin", "tf_model.h5", "vocab.json")
    more = msgspec.structs.replace(found, files=(*found.files, *(FileInfo(path=name, size_bytes=5) for name in names)))
    plan = make_position_plan(more, inspection, Recipe(target=4096))
    (carry,) = (action for action in plan.actions if isinstance(action, Carry))
    assert carry == Carry(files=("vocab.json",), size_bytes=5)
    (said,) = (warning for warning in plan.warnings if warning.code == "other-weights-left-out")
    assert "pytorch_model.bin, tf_model.h5" in said.message


def test_fine_tuning_needs_no_warning() -> None:
    assert planned(GPT2, Recipe(target=4096, fine_tune=True)).warnings == ()


def test_a_usage_error_is_one() -> None:
    assert isinstance(refused(GPT2, Recipe(target=4096, base="unscaled")), UsageError)


#: https://huggingface.co/bigcode/gpt_bigcode-santacoder: one KV head of 128
SANTACODER = {"model_type": "gpt_bigcode", "multi_query": True, "n_embd": 2048, "n_head": 16, "n_layer": 24}


@pytest.mark.parametrize(
    ("published", "bytes_per_token"),
    [
        (GPT2, 12 * 2 * 768 * 2),
        (OPT, 12 * 2 * 768 * 2),
        (BLOOM, 24 * 2 * 1024 * 2),
        (MPT, 32 * 2 * 4096 * 2),
        (FALCON, 24 * 2 * 2048 * 2),
        ((SANTACODER, {}), 24 * 2 * 128 * 2),
    ],
)
def test_kv_cache(published: Any, bytes_per_token: int) -> None:
    """Keys and values of every layer, at 16 bits."""
    cache = read(published)[1].kv_cache
    assert cache is not None
    assert cache.bytes_per_token == bytes_per_token


def test_an_encoder_keeps_no_cache() -> None:
    assert read(ROBERTA)[1].kv_cache is None


def test_what_rounding_costs() -> None:
    """0.7071 * 8192 = 5793 lies between 2^12 and 2^13: its places are 4 apart in float16 and 32 in bfloat16."""
    for dtype, lost in (("F16", "2 nats"), ("BF16", "16 nats"), ("F32", None)):
        found, inspection = read((BLOOM[0], {"word_embeddings.weight": (dtype, (250880, 1024))}))
        plan = make_position_plan(found, inspection, Recipe(target=8192))
        said = [warning.message for warning in plan.warnings if warning.code == "alibi-rounded"]
        assert [f"up to {lost}" in message for message in said] == ([True] if lost else [])
    assert "alibi-rounded" not in {warning.code for warning in planned(MPT, Recipe(target=8192)).warnings}


def noted(published: Any, code: str) -> str | None:
    _found, inspection = read(published)
    return next((note.message for note in inspection.notes if note.code == code), None)


def warned(published: Any, recipe: Recipe, code: str) -> str | None:
    return next((w.message for w in planned(published, recipe).warnings if w.code == code), None)


def test_a_raised_table_is_cut_back_and_a_divided_one_is_not() -> None:
    """Every trained row is still there in the first; in the second only what was computed anew."""
    found, inspection = read(MARIAN)
    raised = result(found, make_position_plan(found, inspection, Recipe(target=2048)))
    back = make_position_plan(raised, inspect(raised), Recipe(target=512))
    assert {(c.rows, c.rows_kept) for c in tensor_changes_of(back.actions) if isinstance(c, FillSinusoids)} == {
        (512, 512)
    }
    options = {"positions": "interpolated"}
    recipe = Recipe(target=2048, method="sinusoidal", options=options)
    divided = result(found, make_position_plan(found, inspection, recipe))
    again = inspect(divided)
    assert all(isinstance(action, Carry) for action in make_position_plan(divided, again, recipe).actions)
    for other in (Recipe(target=512), Recipe(target=2048), Recipe(target=4096)):
        with pytest.raises(RefusedError) as caught:
            make_position_plan(divided, again, other)
        assert caught.value.code == "baked-source"


def test_no_trained_row_is_lost_to_a_length_that_was_told() -> None:
    """Of 512 rows, 256 are said to be trained: the others may be too."""
    found = contents(*MARIAN[:1], tensors=MARIAN[1])
    plan = make_position_plan(found, inspect(found, original_context=256), Recipe(target=2048))
    assert {c.rows_kept for c in tensor_changes_of(plan.actions) if isinstance(c, FillSinusoids)} == {512}


def test_within_a_length_that_the_table_has_not() -> None:
    """What nothing loads is mended: config.json and table have one length afterwards."""
    found = contents(*MARIAN[:1], tensors=MARIAN[1])
    plan = make_position_plan(found, inspect(found, original_context=1024), Recipe(target=800))
    assert (plan.method, edits(plan)) == ("none", {"/max_position_embeddings": 1024})
    fills = [change for change in tensor_changes_of(plan.actions) if isinstance(change, FillSinusoids)]
    assert [(fill.rows, fill.rows_kept) for fill in fills] == [(1024, 1024)] * 2
    assert not plan.misread
    # Half of it is enough, and nothing is wrong with the whole.
    less = make_position_plan(found, inspect(found, original_context=256), Recipe(target=200))
    assert all(isinstance(action, Carry) for action in less.actions)
    silent = {key: value for key, value in GPT2[0].items() if key not in ("n_positions", "n_ctx")}
    short = planned((silent, {"wpe.weight": ("F32", (64, 768))}), Recipe(target=64))
    assert (short.method, edits(short), short.misread) == ("none", {"/n_positions": 64}, ())


def test_a_family_whose_table_is_not_there() -> None:
    config, tensors = GPT2
    found = contents(config, tensors=tensors)
    with pytest.raises(RefusedError) as caught:
        make_position_plan(found, inspect(found, family="opt"), Recipe(target=128))
    assert caught.value.code == "no-table"


def test_stored_tables_that_nobody_reads_go_and_stay_away() -> None:
    found, inspection = read(M2M_100)
    once = result(found, make_position_plan(found, inspection, Recipe(target=4096)))
    assert not once.tensors
    back = make_position_plan(once, inspect(once), Recipe(target=1024))
    assert (back.method, tensor_changes_of(back.actions)) == ("none", ())


def test_what_a_table_costs_is_not_more_than_was_measured() -> None:
    """docs/evidence.md: spread tables read past the trained length as well as within; repeated ones cost a tenth."""
    assert "needs fine-tuning" not in str(noted(GPT2, "position-cost"))
    assert "needed" not in str(noted(MARIAN, "position-cost"))
    tiled = Recipe(target=4096, method="absolute", options={"interpolation": "tiled"})
    assert "loses its way" not in str(warned(GPT2, tiled, "untrained-positions"))


def test_far_tokens_fade_only_where_they_do() -> None:
    """The gentlest of 16 heads takes 2^-8 a token: 1 nat at 256 tokens, 16 at 4096."""
    config = {**BLOOM[0], "seq_length": 128}
    near, far = (warned((config, BLOOM[1]), Recipe(target=target), "far-tokens-fade") for target in (256, 4096))
    assert "e^-1 of a near one" in str(near)
    assert "uses little" not in str(near)
    assert "e^-16 of a near one, so the model goes on predicting but uses little" in str(far)


@pytest.mark.parametrize("target", [8000, 8191, 8192])
def test_what_rounding_costs_below_a_power_of_two(target: int) -> None:
    """4 heads, the steepest 1/4: 2047 nats in bfloat16, whose last place is 8 there. Falcon divides by 8, too late."""
    bloom = ({**BLOOM[0], "n_head": 4}, {"word_embeddings.weight": ("BF16", (8, 8))})
    assert "up to 4 nats" in str(warned(bloom, Recipe(target=target), "alibi-rounded"))
    falcon = ({**FALCON[0], "num_attention_heads": 4, "hidden_size": 32}, FALCON[1])
    assert "up to 1.41 nats" in str(warned(falcon, Recipe(target=target), "alibi-rounded"))


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(target=8192), True),
        (Recipe(target=8192, fine_tune=True), True),
        (Recipe(target=8192, runtimes=("vllm", "Transformers@4.57")), True),
        (Recipe(target=8192, runtimes=("vllm",)), False),
        (Recipe(target=8192, runtimes=("llama.cpp", "sglang")), False),
    ],
)
def test_rounding_is_for_those_who_run_it_in_transformers(recipe: Recipe, said: bool) -> None:
    assert (warned(BLOOM, recipe, "alibi-rounded") is not None) == said
    assert (warned(BLOOM, recipe, "far-tokens-fade") is None) == recipe.fine_tune


def test_a_length_that_nothing_says() -> None:
    silent = {key: value for key, value in BLOOM[0].items() if key != "seq_length"}
    assert "no seq_length, so 2048 tokens" in str(noted((silent, BLOOM[1]), "length-assumed"))
    computed = {key: value for key, value in MARIAN[0].items() if key != "max_position_embeddings"}
    assert "no max_position_embeddings, so 1024 tokens" in str(noted((computed, {}), "length-assumed"))
    for published in (BLOOM, MARIAN, GPT2, (computed, MARIAN[1])):
        assert noted(published, "length-assumed") is None


def test_slopes_that_transformers_does_not_take() -> None:
    config = {**MPT[0], "attn_config": {"alibi": True, "alibi_bias_max": 16}}
    assert "attn_config.alibi_bias_max is 16" in str(noted((config, MPT[1]), "alibi-exponent"))
    assert noted(MPT, "alibi-exponent") is None
    recipe = Recipe(target=8192, method="alibi", options={"slopes": "interpolated"})
    assert "attn_config.alibi_bias_max" in str(refused(MPT, recipe))
    assert "the number of heads alone" in str(refused(BLOOM, recipe))


def test_one_of_a_kind() -> None:
    """2 heads: slopes of 1/16 and 1/256, and only the first is at 8 nats within 1024 tokens."""
    config = {**BLOOM[0], "n_head": 2, "seq_length": 1024}
    assert "1 of them sees less than" in str(noted((config, {}), "alibi-slopes"))
    assert str(noted(ROBERTA, "stale-buffers")).startswith("a buffer of")
    assert str(noted(GPT2, "stale-buffers")).startswith("2 buffers of")


def test_parameters_without_a_method() -> None:
    error = refused(GPT2, Recipe(target=4096, options={"interpolation": "tiled"}))
    assert "--method absolute" in str(error.hint)
