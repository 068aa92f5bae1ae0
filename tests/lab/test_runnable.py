"""What the lab refuses before it loads a model: those that predict no next token, and lengths without positions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from ctxextend import open_source
from ctxextend.errors import CtxextendError, RefusedError, UsageError
from ctxextend.families import FAMILIES
from ctxextend.lab import verbs
from ctxextend.lab.comparing import Wish
from ctxextend.lab.engines import Choice
from ctxextend.lab.results import Settings
from ctxextend.lab.runnable import most_tokens
from ctxextend.lab.verbs import compare_source, eval_source, smoke_source
from ctxextend.pipeline import check_source, inspect_source
from ctxextend.recipe import Recipe
from ctxextend.runtimes.auto_classes import class_of, kind_of
from tests.lab.demo import DEMO
from tests.lab.without_rope import BART, BERT, BLOOM, CTRL, DISTILBERT, GPT2, MPT, ROWS, XGLM, saved

TEXT: Final = (str(DEMO / "heldout.txt"),)
LONGER: Final = 200


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_args: Any, **_more: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(verbs, "open_engine", opened)


def smoke(folder: Path) -> Any:
    return smoke_source(open_source(folder), length=64, texts=TEXT)


def evaluate(folder: Path, *lengths: int, **more: Any) -> Any:
    settings = Settings(tasks=("perplexity",), lengths=lengths or (64,), windows=1)
    return eval_source(open_source(folder), settings, texts=TEXT, **more)


def compare(folder: Path) -> Any:
    wish = Wish(label="yarn", method="yarn", options={}, target=LONGER)
    return compare_source(
        open_source(folder), [wish], Settings(tasks=("perplexity",), lengths=()), recipe=Recipe(), texts=TEXT
    )


@pytest.mark.usefixtures("nothing_loaded")
@pytest.mark.parametrize("verb", [smoke, evaluate, compare])
@pytest.mark.parametrize(
    ("model_type", "sizes", "what"),
    [
        ("bert", BERT, "is an encoder:"),
        # transformers has no class for these that predicts a token, and its own complaints named the weights.
        ("distilbert", DISTILBERT, "is an encoder:"),
        ("bart", BART, "an encoder with a decoder"),
        ("m2m_100", BART, "an encoder with a decoder"),
    ],
)
def test_what_predicts_no_next_token_is_refused(
    tmp_path: Path, verb: Any, model_type: str, sizes: dict[str, Any], what: str
) -> None:
    folder = saved(tmp_path / "model", model_type, sizes)
    with pytest.raises(RefusedError, match=what) as refused:
        verb(folder)
    assert (refused.value.code, refused.value.found) == ("no-next-token", model_type)
    assert refused.value.hint


@pytest.mark.usefixtures("nothing_loaded")
def test_a_model_is_not_held_against_an_encoder(tmp_path: Path) -> None:
    base = saved(tmp_path / "bert", "bert", BERT)
    with pytest.raises(RefusedError) as refused:
        evaluate(DEMO / "checkpoint", 128, against=open_source(base))
    assert (refused.value.code, refused.value.file) == ("no-next-token", str(base))


def test_what_a_family_of_encoders_has_of_decoders_is_run(tmp_path: Path) -> None:
    """BertLMHeadModel with is_decoder sees what stands before each token alone."""
    assert smoke(saved(tmp_path / "bert", "bert", {**BERT, "is_decoder": True})).ok


def test_the_kinds_are_those_of_transformers() -> None:
    """By the defaults of the configuration classes, and by which classes of models there are for each type."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    mapped = {
        "decoder": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "AutoModelForCausalLM"),
        "encoder": (auto.MODEL_MAPPING_NAMES, "AutoModel"),
        "encoder-decoder": (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "AutoModelForSeq2SeqLM"),
    }
    seen = set()
    for family in FAMILIES.values():
        for model_type in family.model_types:
            if model_type not in CONFIG_MAPPING:
                continue
            kind = kind_of({}, family)
            seen.add(kind)
            both = getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False) is True
            masked = model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
            assert (kind == "encoder-decoder") == both, model_type
            assert kind != "decoder" or not masked, model_type
            if family.positions is not None or kind != "decoder":
                names, loader = mapped[kind]
                assert model_type in names, model_type
                assert class_of({}, family) == loader
    assert seen == set(mapped)


@pytest.mark.parametrize(
    ("model_type", "sizes", "loader"),
    [
        ("bert", BERT, "AutoModel"),
        ("bart", BART, "AutoModelForSeq2SeqLM"),
        ("gpt2", GPT2, "AutoModelForCausalLM"),
        ("modernbert", {**BERT, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}, "AutoModel"),
    ],
)
def test_check_names_the_class_that_loads_it(
    tmp_path: Path, model_type: str, sizes: dict[str, Any], loader: str
) -> None:
    import transformers

    folder = saved(tmp_path / "model", model_type, sizes)
    lines = {
        report.serve
        for report in check_source(open_source(folder)).runtimes
        if report.runtime == "transformers" and report.serve is not None
    }
    assert lines == {f"{loader}.from_pretrained({str(folder)!r}, dtype='auto')"}
    assert eval(lines.pop(), {loader: getattr(transformers, loader)}) is not None


@pytest.mark.parametrize(
    ("model_type", "sizes", "most"),
    [
        ("gpt2", GPT2, ROWS),
        ("mpt", MPT, ROWS),
        ("ctrl", CTRL, ROWS),
        ("bloom", BLOOM, None),
        ("xglm", XGLM, None),
    ],
)
def test_no_text_is_longer_than_its_positions(
    tmp_path: Path, model_type: str, sizes: dict[str, Any], most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", model_type, sizes)
    opened = open_source(folder)
    assert most_tokens(opened, inspect_source(opened, Recipe()), Choice()) == most
    assert evaluate(folder, ROWS) is not None
    report = smoke_source(opened, length=LONGER, texts=TEXT)
    assert not report.ok
    if most is None:
        assert len(report.checks) == 6
        assert evaluate(folder, LONGER) is not None
        return
    assert [(check.name, check.ok) for check in report.checks] == [("positions", False)]
    assert f"positions for {ROWS} tokens" in report.checks[0].detail
    assert f"ctxextend convert {folder} --target {LONGER}" in report.checks[0].detail
    assert report.tokens == 0

    def loaded(*_args: Any, **_more: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(verbs, "open_engine", loaded)
    with pytest.raises(RefusedError) as refused:
        evaluate(folder, 64, LONGER)
    error = refused.value
    assert (error.code, error.key, error.found) == ("past-positions", "--lengths", str(LONGER))
    assert error.expected == f"at most {ROWS} tokens"
    assert error.hint == f"ctxextend convert {folder} --target {LONGER} makes more"


@pytest.mark.usefixtures("nothing_loaded")
def test_the_one_it_is_held_against_has_positions_too(tmp_path: Path) -> None:
    base = saved(tmp_path / "gpt2", "gpt2", GPT2)
    with pytest.raises(RefusedError) as refused:
        evaluate(DEMO / "checkpoint", 128, against=open_source(base))
    assert (refused.value.code, refused.value.key) == ("past-positions", "--short-lengths")


@pytest.mark.usefixtures("nothing_loaded")
def test_what_went_into_the_weights_is_not_taken_off_by_the_config(tmp_path: Path) -> None:
    """A table that was resized, whose config alone is put back for ``--against original``."""
    from ctxextend import Options, plan_source, run_plan

    opened = open_source(saved(tmp_path / "gpt2", "gpt2", GPT2))
    made, _manifest = run_plan(
        plan_source(opened, Recipe(method="absolute", target=LONGER)), opened, tmp_path / "out", options=Options()
    )
    with pytest.raises(UsageError) as refused:
        evaluate(made, original=True)
    assert refused.value.code == "baked-source"
    with pytest.raises(RefusedError) as longer:
        evaluate(made, 2 * LONGER)
    assert longer.value.hint is not None
    assert f"convert BASE --target {2 * LONGER}" in longer.value.hint


def test_a_type_without_a_class_is_refused_before_its_weights(tmp_path: Path) -> None:
    """Known to transformers, and no family of ours: refused by what there is, not as too old a release."""
    from ctxextend.lab.engines.transformers import load, require_class

    folder = tmp_path / "model"
    shutil.copytree(DEMO / "checkpoint", folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "model_type": "vit"}))
    (folder / "model.safetensors").unlink()
    for refuses in (lambda: load(folder), lambda: require_class({"model_type": "vit"}, file="config.json")):
        with pytest.raises(CtxextendError) as refused:
            refuses()
        assert (type(refused.value), refused.value.code) == (RefusedError, "no-next-token")
    require_class({"model_type": "llama"}, file="config.json")
    require_class({"model_type": "of tomorrow"}, file="config.json")
