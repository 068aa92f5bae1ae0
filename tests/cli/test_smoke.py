"""``ctxextend smoke`` and ``convert --smoke`` as a user calls them: exit codes, the document, what stands where."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from ctxextend.lab import verbs
from ctxextend.lab.texts import Document, read_documents
from tests.cli.support import DEMO, Ran, call, contents, driven, edit_config, finish, read_json, run, tree

pytestmark = pytest.mark.usefixtures("demo_is_left_alone")

TEXT = ("--text", DEMO.parent / "heldout.txt")
TRAINED = 256
CHECKS = ["positions", "rope", "sense", "decoding", "cached", "passkey"]
WEIGHTS = "model.safetensors"

#: What a refusal for want of memory ends with.
LONGEST = re.compile(r"(\d+) (tokens )?is the longest that fits")

#: The command as it runs where the lab isn't installed.
WITHOUT_TORCH = "import sys\nfor name in ('torch', 'transformers', 'accelerate'): sys.modules[name] = None"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of conversions to four times the trained length, which no test changes."""
    folder = tmp_path_factory.mktemp("made")
    for method in ("yarn", "ntk"):
        call("convert", DEMO, "--method", method, "--target", "1k", "--out", folder / method, code=0)
    gguf = ("--to", "gguf", "--outtype", "f32", "--out", folder / "yarn.gguf")
    call("convert", DEMO, "--method", "yarn", "--target", "1k", *gguf, code=0)
    return folder


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of the demo checkpoint, for a test to break."""
    return Path(shutil.copytree(DEMO, tmp_path / "broken"))


@pytest.fixture(scope="module")
def never_a_number(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a weight that is no number, as a training that diverged leaves it."""
    folder = tmp_path_factory.mktemp("nan") / "nan"
    shutil.copytree(DEMO, folder)
    rewritten(folder, lambda weights: weights["model.layers.3.mlp.down_proj.weight"][0].fill_(float("nan")))
    return folder


@pytest.fixture(scope="module")
def untouched() -> Ran:
    """The model as it is, past its length, as JSON."""
    return call("smoke", DEMO, "--length", "1k", *TEXT, "--json", code=4)


@pytest.fixture(scope="module")
def converted(made: Path, excerpt: tuple[str, Path]) -> Ran:
    """A conversion of it at its new length, as JSON."""
    return call("smoke", made / "yarn", *excerpt, "--json", code=0)


@pytest.fixture(scope="module")
def exported(made: Path, excerpt: tuple[str, Path]) -> Ran:
    """The same weights in llama.cpp, as JSON, in a process that has no torch."""
    before = tree(made)
    ran = finish(driven(WITHOUT_TORCH, "smoke", made / "yarn.gguf", *excerpt, "--json"))
    assert tree(made) == before
    return ran


@pytest.fixture
def short_novels(monkeypatch: pytest.MonkeyPatch) -> None:
    """``convert --smoke`` reads the novels that come along: here their first pages, whose tokens are soon found."""

    def beginnings(given: Sequence[str] = ()) -> tuple[Document, ...]:
        whole = read_documents(given)
        return tuple(msgspec.structs.replace(document, text=document.text[:24_000]) for document in whole)

    monkeypatch.setattr(verbs, "read_documents", beginnings)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def words(text: str) -> str:
    """What was said, however its lines were broken."""
    return " ".join(text.split())


def failing(report: Any) -> list[str]:
    return [check["name"] for check in report["checks"] if not check["ok"]]


def error_of(source: str | Path, *args: str | Path, code: int) -> dict[str, Any]:
    """The error of a smoke test that can't be run, and which leaves a way out. Nothing else is on stdout."""
    ran = call("smoke", source, *args, "--json", code=code)
    found = dict(ran.json)
    assert (found["schema"], found["exit_code"]) == ("ctxextend.error/1", code)
    assert found["code"] != "bug", found
    assert found.get("hint") or found.get("expected"), found
    return found


def test_the_page(made: Path) -> None:
    before = tree(made)
    ran = run("smoke", made / "yarn", *TEXT, code=0)
    assert tree(made) == before
    first = ran.out.splitlines()[0]
    assert re.fullmatch(rf"{re.escape(str(made / 'yarn'))} works at 1k \(trained for 256\); transformers .*", first)
    assert all(f"ok  {name}" in ran.out for name in CHECKS[:-1])
    # A model of a million parameters answers no questions.
    assert "--  passkey" in ran.out
    assert "FAIL" not in ran.out
    assert "\x1b" not in ran.out + ran.err
    # What is done next, and nothing of any library.
    assert all(line.endswith(" ...") for line in ran.err.splitlines()), ran.err
    assert "reading to 896 ..." in ran.err


def test_the_document(converted: Ran) -> None:
    report = converted.json
    assert (report["schema"], report["ok"], report["length"]) == ("ctxextend.smoke/1", True, 1024)
    assert (report["device"], report["dtype"], report["trained_context"]) == ("cpu", "float32", TRAINED)
    assert [check["name"] for check in report["checks"]] == CHECKS
    assert all(check["ok"] and check["detail"] for check in report["checks"])
    assert report["tokens_per_second"] == pytest.approx(report["tokens"] / report["seconds"])
    assert report["seconds"] > 0
    # 2 (keys and values) x 4 layers x 2 heads x 32 numbers of 4 bytes, a token.
    assert report["kv_cache_bytes"] == 2 * 4 * 2 * 32 * 4 * 1024
    assert report["peak_memory_bytes"] > report["weight_bytes"] + report["kv_cache_bytes"]
    assert not converted.err


def test_the_untouched_model_fails_past_its_length(untouched: Ran) -> None:
    report = untouched.json
    assert (report["schema"], report["ok"]) == ("ctxextend.smoke/1", False)
    assert failing(report) == ["positions", "sense"]
    assert not untouched.err


def test_what_failed_is_told_with_every_figure(untouched: Ran) -> None:
    page = call("smoke", DEMO, "--length", "1k", *TEXT, code=4)
    told = words(page.err.partition("error: ")[2])
    assert told.startswith("2 of 6 checks failed: positions, sense")
    assert str(DEMO) in told
    for check in untouched.json["checks"]:
        assert (words(check["detail"]) in told) is not check["ok"], check
    assert f"{DEMO} fails at 1k" in page.out
    assert "FAIL  positions" in page.out
    assert "FAIL  sense" in page.out
    assert "error" not in page.out


def test_a_length_within_the_trained_one() -> None:
    report = call("smoke", DEMO, "--length", "128", *TEXT, "--json", code=0).json
    assert (report["ok"], report["length"]) == (True, 128)
    assert max(passage["offset"] for passage in report["passages"]) < 128


def test_without_a_length_it_is_the_checkpoints_own() -> None:
    report = call("smoke", DEMO, *TEXT, "--json", code=0).json
    assert (report["ok"], report["length"]) == (True, TRAINED)


def test_a_length_that_the_checkpoint_does_not_state(made: Path) -> None:
    report = call("smoke", made / "yarn", "--length", "1280", *TEXT, "--json", code=4).json
    assert "positions" in failing(report)
    assert "1280" in report["checks"][0]["detail"]


def test_bounds_of_ones_own(made: Path) -> None:
    ran = call("smoke", made / "ntk", *TEXT, "--max-perplexity-ratio", "0.5", code=4)
    assert "1 of 6 checks failed: sense" in ran.err
    assert "at most 0.5" in ran.err
    call("smoke", DEMO, "--length", "1k", *TEXT, "--max-perplexity-ratio", "100", "--no-passkey", code=4)


@pytest.mark.parametrize("bound", ["nan", "-1", "0"])
def test_a_ratio_that_is_no_bound(bound: str) -> None:
    found = error_of(DEMO, "--max-perplexity-ratio", bound, *TEXT, code=2)
    assert "--max-perplexity-ratio" in (found.get("key") or found["message"])


@pytest.mark.parametrize("bound", ["nan", "-1", "2"])
def test_a_share_that_is_no_bound(bound: str) -> None:
    assert "--min-passkey" in error_of(DEMO, "--min-passkey", bound, *TEXT, code=2)["message"]


def test_a_gguf_file_runs_in_llama_cpp(exported: Ran) -> None:
    # llama.cpp writes what it loads to the process's own stderr.
    assert (exported.code, exported.err) == (0, "")
    report = exported.json
    assert (report["engine"], report["length"], report["ok"]) == ("llama.cpp", 1024, True)
    skipped = [check["name"] for check in report["checks"] if check["skipped"]]
    assert skipped == ["rope", "cached", "passkey"]


def test_the_same_weights_make_the_same_sense_in_both_engines(converted: Ran, exported: Ran) -> None:
    ours, theirs = ([passage["perplexity"] for passage in ran.json["passages"]] for ran in (converted, exported))
    assert ours == pytest.approx(theirs, rel=2e-3)


def test_quiet(made: Path, excerpt: tuple[str, Path]) -> None:
    ran = call("smoke", made / "yarn.gguf", "--length", "512", *excerpt, "-q", code=0)
    assert not ran.err
    assert "works at 512" in ran.out


def test_an_error_is_told_even_when_quiet(made: Path, excerpt: tuple[str, Path]) -> None:
    bound = ("--max-perplexity-ratio", "0.5")
    ran = run("smoke", made / "yarn.gguf", "--length", "512", *excerpt, *bound, "-q", code=4)
    assert ran.err.startswith("error: 1 of 6 checks failed: sense\n")
    assert "FAIL  sense" in ran.out


def test_a_figure_that_is_no_number_is_null(never_a_number: Path) -> None:
    ran = call("smoke", never_a_number, *TEXT, "--json", code=4)
    assert failing(ran.json) == ["sense", "decoding", "cached"]
    assert {passage["perplexity"] for passage in ran.json["passages"]} == {None}


def test_not_enough_memory() -> None:
    # 2048 bytes a token: a tebibyte.
    found = error_of(DEMO, "--length", "512m", *TEXT, code=3)
    assert found["code"] == "not-enough-memory"
    assert "512m" in found["message"]
    assert "1.0 TiB KV cache" in found["expected"]
    fits = LONGEST.search(found["hint"])
    assert fits is not None
    assert TRAINED < int(fits[1]) < 512 << 20


def test_the_longest_that_fits_is_no_longer_refused_for_the_memory(tmp_path: Path) -> None:
    # With a text that can't be read, the run ends before it fills the memory.
    found = error_of(DEMO, "--length", "512m", *TEXT, code=3)
    fits = LONGEST.search(found["hint"])
    assert fits is not None
    # Others use memory too: three quarters of it are surely there.
    length = str(int(fits[1]) * 3 // 4)
    (tmp_path / "short.txt").write_text("one two three\n")
    assert error_of(DEMO, "--length", length, "--text", tmp_path / "short.txt", code=2)["code"] == "short-text"


def test_no_such_checkpoint(tmp_path: Path) -> None:
    assert error_of(tmp_path / "nothing", code=1)["file"] == str(tmp_path / "nothing")


@pytest.mark.parametrize("length", ["abc", "0", "-5", "nan", "1.5", ""])
def test_a_length_that_is_none(length: str) -> None:
    found = error_of(DEMO, "--length", length, code=2)
    assert (found["key"], found["found"]) == ("--length", repr(length))


def test_a_length_too_short_to_tell_anything() -> None:
    found = error_of(DEMO, "--length", "16", *TEXT, code=2)
    assert (found["key"], found["found"]) == ("--length", "16")


@pytest.mark.parametrize("device", ["nosuch", "meta"])
def test_a_device_that_runs_nothing(device: str) -> None:
    found = error_of(DEMO, "--device", device, *TEXT, code=2)
    assert (found["key"], found["found"]) == ("--device", device)


def test_a_card_that_is_not_there() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    found = error_of(DEMO, "--device", "cuda", *TEXT, code=2)
    assert (found["key"], found["found"]) == ("--device", "cuda")


def test_engines_and_formats(made: Path) -> None:
    found = error_of(DEMO, "--engine", "llama.cpp", *TEXT, code=2)
    assert (found["key"], found["found"]) == ("--engine", "llama.cpp")
    assert "--to gguf" in found["hint"]
    found = error_of(made / "yarn.gguf", "--engine", "transformers", *TEXT, code=2)
    assert "--to safetensors" in found["hint"]
    found = error_of(DEMO, "--engine", "nosuch", *TEXT, code=2)
    assert "llama.cpp" in found["message"]


def test_an_engine_that_is_not_installed() -> None:
    ran = finish(driven("import sys\nsys.modules['vllm'] = None", "smoke", DEMO, "--engine", "vllm", *TEXT))
    assert (ran.code, ran.out) == (2, "")
    assert "hint: pip install vllm\n" in ran.err


def test_without_the_lab(exported: Ran) -> None:
    ran = finish(driven(WITHOUT_TORCH, "smoke", DEMO, *TEXT))
    assert (ran.code, ran.out) == (2, "")
    assert "hint: pip install 'ctxextend[lab]'\n" in ran.err
    # What llama.cpp runs needs none of it.
    assert exported.json["ok"]


def test_servers() -> None:
    for option in ("--served-name", "--tokenizer"):
        found = error_of(DEMO, option, "x", code=2)
        assert found["key"] == option
        assert "--endpoint" in found["hint"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert url in str(error_of(DEMO, "--endpoint", url, code=1))
    assert error_of(DEMO, "--endpoint", "nowhere", code=2)["found"] == "nowhere"


@pytest.mark.parametrize(
    ("name", "data", "code", "kind"),
    [
        ("nothing.txt", None, 1, "text-missing"),
        ("empty.txt", b"", 1, "text-empty"),
        ("blank.txt", b" \n\n", 1, "text-empty"),
        ("latin.txt", "caf\xe9\n".encode("latin-1"), 1, "text-encoding"),
        ("short.txt", b"one two three\n", 2, "short-text"),
        ("page.pdf", b"%PDF", 2, "text-kind"),
    ],
)
def test_a_text_that_is_none(tmp_path: Path, name: str, data: bytes | None, code: int, kind: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    found = error_of(DEMO, "--text", tmp_path / name, code=code)
    assert found["code"] == kind
    assert (found["found"] if kind == "short-text" else found["file"]) == (
        "4" if kind == "short-text" else str(tmp_path / name)
    )


def unknown_type(folder: Path) -> None:
    edit_config(folder, model_type="nosuchmodel")


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def one_weight_less(folder: Path) -> None:
    rewritten(folder, lambda weights: weights.pop("model.layers.1.self_attn.q_proj.weight"))


def other_shape(folder: Path) -> None:
    edit_config(folder, vocab_size=1000)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("not JSON")


def no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "code", "named"),
    [
        (unknown_type, 3, "nosuchmodel"),
        (cut_short, 1, WEIGHTS),
        (no_weights, 1, WEIGHTS),
        (one_weight_less, 1, "model.layers.1.self_attn.q_proj.weight"),
        (other_shape, 1, "model.embed_tokens.weight"),
        (no_tokenizer, 1, "tokenizer.json"),
        (no_json, 1, "tokenizer.json"),
        (no_vocabulary, 1, "tokenizer.json"),
    ],
)
def test_a_checkpoint_that_is_broken(broken: Path, damage: Callable[[Path], None], code: int, named: str) -> None:
    damage(broken)
    before = tree(broken)
    found = error_of(broken, *TEXT, code=code)
    assert tree(broken) == before
    assert named in str(found)
    assert found["hint"]
    # A sentence of its own: nothing that was cut off, nothing that speaks of the inside of a library.
    assert not found["message"].rstrip().endswith(":")
    assert "ignore_mismatched_sizes" not in found["message"]


YARN = ("--method", "yarn", "--target", "512")


@pytest.mark.usefixtures("short_novels")
def test_a_conversion_that_is_run_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ran = call("convert", DEMO, *YARN, "--out", tmp_path / "out", "--smoke", code=0)
    assert ran.out == f"{tmp_path / 'out'}\n"
    assert f"{tmp_path / 'out'} works at 512" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # Nor did a library write past Python.
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("short_novels")
def test_a_conversion_that_is_run_at_once_as_json(tmp_path: Path) -> None:
    out = tmp_path / "out"
    document = call("convert", DEMO, *YARN, "--out", out, "--smoke", "--json", code=0).json
    assert document["schema"] == "ctxextend.manifest/1"
    (report,) = document["smoke"]
    assert (report["schema"], report["source"], report["ok"]) == ("ctxextend.smoke/1", str(out), True)
    # What a smoke test found is no part of what lies there.
    assert "smoke" not in read_json(out / "ctxextend.json")


@pytest.mark.usefixtures("short_novels")
def test_a_conversion_that_fails_its_smoke_test_is_kept(never_a_number: Path, tmp_path: Path) -> None:
    before, out = tree(never_a_number), tmp_path / "out"
    ran = call("convert", never_a_number, *YARN, "--out", out, "--smoke", "-q", code=4)
    assert ran.out == f"{out}\n"
    assert ran.err.startswith("error: 3 of 6 checks failed: sense, decoding, cached\n")
    call("check", out, code=0)
    plain = tmp_path / "plain"
    call("convert", never_a_number, *YARN, "--out", plain, code=0)
    assert contents(out).keys() == contents(plain).keys()
    assert tree(never_a_number) == before
    again = ("--out", out, "--force", "--smoke", "--json")
    document = call("convert", never_a_number, *YARN, *again, code=4).json
    assert (document["schema"], document["smoke"][0]["ok"]) == ("ctxextend.manifest/1", False)


def test_a_conversion_that_cannot_be_run_is_kept_and_named(broken: Path, tmp_path: Path) -> None:
    no_tokenizer(broken)
    out = tmp_path / "out"
    ran = call("convert", broken, *YARN, "--out", out, "--smoke", code=4)
    assert (out / "ctxextend.json").exists()
    assert "tokenizer.json" in ran.err
    # Whoever reads this must learn that the conversion itself is there.
    assert ran.out == f"{out}\n"


@pytest.mark.usefixtures("short_novels")
def test_every_file_of_an_export_is_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    types = ("--to", "gguf", "--outtype", "f32", "--outtype", "f16")
    document = call("convert", DEMO, *YARN, *types, "--out", out, "--smoke", "--json", code=0).json
    assert {report["source"] for report in document["smoke"]} == {str(path) for path in out.glob("*.gguf")}
    assert len(document["smoke"]) == 2
    assert all(report["ok"] and report["engine"] == "llama.cpp" for report in document["smoke"])


def test_an_export_is_run_without_torch(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    ran = finish(driven(WITHOUT_TORCH, "convert", DEMO, "--to", "gguf", *YARN, "--out", out, "--smoke"))
    assert (ran.code, ran.out) == (0, f"{out}\n"), ran


def test_what_cannot_be_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out", "--smoke")
    found = call("convert", DEMO, *YARN, *out, "--config-only", "--json", code=2).json
    assert found["key"] == "--smoke"
    ran = finish(driven(WITHOUT_TORCH, "convert", DEMO, *YARN, *out))
    assert (ran.code, ran.out) == (2, "")
    assert "pip install 'ctxextend[lab]'" in ran.err
    without = "import sys\nsys.modules['xllamacpp'] = None"
    ran = finish(driven(without, "convert", DEMO, "--to", "gguf", *YARN, "--out", tmp_path / "out.gguf", "--smoke"))
    assert (ran.code, ran.out) == (2, ""), ran
    assert "pip install" in ran.err
    assert not list(tmp_path.iterdir())


def test_a_plan_is_not_run(tmp_path: Path) -> None:
    ran = call("convert", DEMO, *YARN, "--out", tmp_path / "out", "--smoke", "--dry-run", code=0)
    assert "512" in ran.out
    assert not list(tmp_path.iterdir())
    assert "loading the model" not in ran.err


def test_it_starts_without_torch() -> None:
    script = "import atexit, sys\natexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))"
    assert finish(driven(script, "smoke", "--help")).err == "False"
