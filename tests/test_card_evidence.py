"""What was measured, on a card: read from a report's folder, shown, and in the form that the Hub takes results in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from huggingface_hub import ModelCard, ModelCardData

from ctxextend.apply import Manifest
from ctxextend.card import Evidence, model_card, pictures_of, read_evidence
from ctxextend.card.evidence import CHARTS
from ctxextend.errors import CheckpointError, RefusedError
from ctxextend.lab import report_folder, results
from ctxextend.lab.engines.base import EngineFacts
from tests.test_card import CARD, DASH, REPO, card_of, made


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return made("qwen2.5-7b-instruct-128k-yarn.yaml", tmp_path_factory.mktemp("qwen"))


def evaluation(**changes: Any) -> results.Evaluation:
    points = tuple(
        results.Point(start=at, end=at + 4096, count=2, perplexity=8.0 if at % 8192 else 2.0)
        for at in range(0, 65536, 4096)
    )
    found = results.Evaluation(
        version="0.1.0",
        ok=False,
        source="/home/alice/out/made",
        against="original",
        method="yarn",
        trained_context=32768,
        current_context=131072,
        engine=EngineFacts(
            engine="transformers",
            version="5.23.0",
            device="cpu",
            dtype="float32",
            vocabulary=10,
            context=None,
            opening=(),
            weight_bytes=None,
            can=frozenset({"losses"}),
        ),
        settings=results.Settings(tasks=("perplexity",), lengths=(65536,)),
        texts=(results.Text(name="emma", sha256="ab" * 32, tokens=200000),),
        curves=(
            results.Curve(length=65536, windows=2, whole=float("inf"), points=points, ratio=1.0317),
            results.Curve(length=32768, windows=4, whole=9.87654321, points=(), ratio=None),
        ),
        sliding=(results.Sliding(length=65536, stride=256, windows=3, perplexity=12.34),),
        rates=(
            results.Rate(kind="passkey", length=65536, depth=None, asked=10, found=9, rate=0.9, low=0.596, high=0.982),
            results.Rate(kind="passkey", length=65536, depth=0.5, asked=2, found=1, rate=0.5, low=0.1, high=0.9),
        ),
        short=(
            results.Short(
                length=1024,
                count=10,
                perplexity=20.6,
                perplexity_against=20.0,
                regression=0.03,
                kl=0.0123,
                same_top=0.875,
            ),
        ),
        gates=(results.Gate(name="kl", bound=0.01, measured=0.0123, ok=False, where="1k"),),
        spectrum=(),
        memory=(results.MemoryAt(length=65536, kv_cache_bytes=1 << 30),),
        cost=results.Cost(cells=1, tokens=1, seconds=1.0, tokens_per_second=1.0, peak_memory_bytes=None),
        notes=(),
    )
    return msgspec.structs.replace(found, **changes)


SMOKE = {
    "schema": "ctxextend.smoke/1",
    "version": "0.1.0",
    "ok": False,
    "source": "/home/alice/out/made",
    "length": 131072,
    "trained_context": 32768,
    "engine": "transformers",
    "engine_version": "5.23.0",
    "device": "cuda:0",
    "dtype": "bfloat16",
    "checks": [
        {"name": "rope", "ok": True, "detail": "as | planned", "skipped": False},
        {"name": "sense", "ok": False, "detail": "3 times", "skipped": False},
        {"name": "passkey", "ok": True, "detail": "none within", "skipped": True},
    ],
    "passages": [],
}


def report(folder: Path, **changes: Any) -> Path:
    (folder / "eval.json").write_bytes(msgspec.json.encode(evaluation(**changes)))
    (folder / "smoke.json").write_text(json.dumps(SMOKE))
    for name in ("spectrum.png", "perplexity.png", "holiday.png"):
        (folder / name).write_bytes(b"PNG")
    return folder


def test_numbers_and_pictures(qwen: Manifest, tmp_path: Path) -> None:
    evidence = read_evidence(report(tmp_path))
    assert evidence is not None
    assert evidence.pictures == ("perplexity.png", "spectrum.png")
    assert pictures_of(evidence, tmp_path) == {
        "evidence/perplexity.png": tmp_path / "perplexity.png",
        "evidence/spectrum.png": tmp_path / "spectrum.png",
    }
    found, text = card_of(qwen, CARD, evidence=evidence)
    part = text[text.index("## Evaluation") : text.index("## Limits")]
    assert "Measured on `made` by ctxextend 0.1.0 with transformers 5.23.0 on cpu, float32." in part
    assert "Texts: `emma` (200000 tokens, sha256 `abababababababab`)." in part
    assert f"| 64k | 2 | {DASH} | 1.032 |" in part
    assert f"| 32k | 4 | 9.88 | {DASH} |" in part
    # Sixteen stretches in pairs: exp((2 ln 2 + 2 ln 8) / 4) = sqrt(16).
    assert f"| 0{DASH}8192 | 4.00 | 4 |" in part
    assert f"| 57344{DASH}65536 | 4.00 | 4 |" in part
    assert "| 64k | 256 | 3 | 12.3 |" in part
    assert f"| pass keys | 64k | 9 of 10 | 90 % | 59.6{DASH}98.2 % |" in part
    assert "| 1k | 20.6 | 20.0 | +3 % | 0.0123 | 87.5 % |" in part
    assert "| `kl` | 0.01 | 0.0123 | **missed** |" in part
    assert "KV cache: 1.0 GiB at 64k." in part
    assert "![Perplexity by position](evidence/perplexity.png)" in part
    assert "Smoke test at 131072 tokens (transformers 5.23.0 on cuda:0, bfloat16): **failed**." in part
    assert "| `rope` | ok | as &#124; planned |" in part
    assert "| `sense` | **failed** | 3 times |" in part
    assert "| `passkey` | not asked | none within |" in part
    assert "/home/alice" not in text
    assert "- Nothing was measured past 65536 tokens." in text
    assert "Quality was not measured" not in text
    assert found["model-index"] == [
        {
            "name": "Qwen2.5-7B-Instruct-128k",
            "results": [
                {
                    "task": {"type": "text-generation", "name": "Text generation"},
                    "dataset": {"name": "emma", "type": "text"},
                    "metrics": [
                        {
                            "type": "perplexity-ratio",
                            "value": 1.0317,
                            "name": "Perplexity from 32768 to 65536 tokens, over that of the same text read with "
                            "at most 32768 tokens before it",
                            "args": {"length": 65536, "windows": 2},
                        },
                        {
                            "type": "perplexity",
                            "value": 9.8765,
                            "name": "Perplexity at 32768 tokens",
                            "args": {"length": 32768, "windows": 4},
                        },
                        {
                            "type": "perplexity",
                            "value": 12.34,
                            "name": "Sliding-window perplexity at 65536 tokens",
                            "args": {"length": 65536, "stride": 256, "windows": 3},
                        },
                    ],
                },
                {
                    "task": {"type": "text-generation", "name": "Text generation"},
                    "dataset": {"name": "Pass keys", "type": "ctxextend-passkey"},
                    "metrics": [
                        {
                            "type": "accuracy",
                            "value": 0.9,
                            "name": "Share found at 65536 tokens",
                            "args": {"asked": 10, "found": 9},
                        }
                    ],
                },
            ],
        }
    ]


def test_results_are_what_the_hub_takes_for_such(qwen: Manifest, tmp_path: Path) -> None:
    text = model_card(qwen, source_card=None, repo_id=REPO, evidence=read_evidence(report(tmp_path)))
    # References between places of a document, which not every reader of YAML follows.
    assert "&id" not in text
    card = ModelCard(text)
    assert isinstance(card.data, ModelCardData)
    assert [(one.dataset_type, one.metric_type, one.metric_value) for one in card.data.eval_results or ()] == [
        ("text", "perplexity-ratio", 1.0317),
        ("text", "perplexity", 9.8765),
        ("text", "perplexity", 12.34),
        ("ctxextend-passkey", "accuracy", 0.9),
    ]


def test_a_smoke_test_alone_is_no_measurement(qwen: Manifest, tmp_path: Path) -> None:
    (report(tmp_path) / "eval.json").unlink()
    evidence = read_evidence(tmp_path)
    assert evidence is not None
    assert evidence.pictures == ()
    found, text = card_of(qwen, evidence=evidence)
    assert "model-index" not in found
    assert "- Quality was not measured." in text


def test_a_folder_without_evidence(tmp_path: Path) -> None:
    assert read_evidence(tmp_path) is None
    assert read_evidence(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b'{"schema": "ctxextend.eval/2"}', b'{"schema": "ctxextend.eval/1"}', b"\xff"]
)
def test_broken_evidence_is_named(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "eval.json").write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        read_evidence(tmp_path)
    assert (caught.value.code, caught.value.file) == ("broken-evidence", str(tmp_path / "eval.json"))


def test_a_report_of_a_later_form_is_refused(tmp_path: Path) -> None:
    later = report(tmp_path, schema="ctxextend.eval/2")
    with pytest.raises(CheckpointError, match="can't be read") as caught:
        read_evidence(later)
    assert caught.value.found == "ctxextend.eval/2"


@pytest.mark.parametrize("changes", [{"method": "ntk"}, {"trained_context": 40960}, {"current_context": 65536}])
def test_numbers_of_another_model_are_refused(qwen: Manifest, tmp_path: Path, changes: dict[str, Any]) -> None:
    evidence = read_evidence(report(tmp_path, **changes))
    with pytest.raises(RefusedError) as caught:
        model_card(qwen, source_card=None, repo_id=REPO, evidence=evidence)
    assert caught.value.code == "foreign-evidence"


def test_evidence_that_says_nothing_adds_nothing(qwen: Manifest) -> None:
    found, _text = card_of(qwen, evidence=Evidence())
    assert "model-index" not in found


def test_every_chart_of_a_report_is_known() -> None:
    assert set(CHARTS) == set(report_folder.CHARTS)
