"""The part of a card that says which runtimes read the result, how, and by which command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from ctxextend.apply import Manifest, Verified
from ctxextend.card.changes import config_only, size_words
from ctxextend.card.markdown import NOTHING, block, code, plain, table

#: Runtimes that are told of a model in Python, or by a file.
_LANGUAGES: Final = {
    "transformers": "python",
    "exllamav3": "python",
    "exllamav2": "python",
    "ctranslate2": "python",
    "ollama": "text",
}
#: Those that take a folder and no repository of the Hub.
_FOLDERS: Final = frozenset({"exllamav3", "exllamav2", "onnxruntime-genai", "ollama-create"})

#: What a snippet needs in front of it, by its runtime.
_IMPORTS: Final = {
    "transformers": "from transformers import AutoModelForCausalLM\n\nmodel = ",
    "ctranslate2": "import ctranslate2.converters\n\n",
    "exllamav3": "from exllamav3 import Cache, Config, Model\n\n",
    "exllamav2": "from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config\n\n",
}


def runtimes_part(manifest: Manifest, repo_id: str | None) -> Iterator[str]:
    """The section's lines; without any runtime there is none."""
    found = manifest.verified
    if not found:
        return
    yield from ("## Runtimes", "")
    yield "What each runtime makes of the files, worked out from its own way of reading them when they were written:"
    yield ""
    yield from table(("runtime", "versions", "reads", "longest text, tokens"), map(_row, found), numbers=frozenset({3}))
    files = list(size_words(manifest))
    if len(files) > 1:
        yield from ("Files:", "")
        yield from table(("file", "size"), files, numbers=frozenset({1}))
    commands: dict[str, list[Verified]] = {}
    for one in found:
        # A command that would serve what isn't meant helps nobody, nor does one without weights.
        if one.serve is not None and one.agrees and not config_only(manifest):
            commands.setdefault(one.serve, []).append(one)
    for serve, readers in commands.items():
        yield from _command(serve, readers, repo_id)


def _row(found: Verified) -> tuple[str, ...]:
    if found.absent is not None:
        return (plain(found.runtime), code(found.versions), f"nothing: {plain(found.absent)}", NOTHING)
    reads = "as planned" if found.agrees else f"**not as planned**: {plain(found.reason or 'another rope')}"
    longest = "no limit" if found.max_context is None else str(found.max_context)
    return (plain(found.runtime), code(found.versions), reads, longest)


def _command(serve: str, readers: list[Verified], repo_id: str | None) -> Iterator[str]:
    name = readers[0].runtime
    versions = ", ".join(code(one.versions) for one in readers)
    command, local = _published(serve, name, repo_id)
    where = f", inside the folder of {code(f'hf download {repo_id} --local-dir .')}" if local and repo_id else ""
    yield from (f"{plain(name)} {versions}{where}:", "")
    yield from block(_IMPORTS.get(name, "") + command, _LANGUAGES.get(name, "sh"))


def _published(serve: str, name: str, repo_id: str | None) -> tuple[str, bool]:
    """A command that was written for the folder itself, for the repository; and whether it still needs the folder."""
    if repo_id is None or name in _FOLDERS:
        return serve, True
    if name == "ollama":
        # The Hub's address with a file's name as the tag (hub-docs, ollama.md).
        return serve.replace("FROM ./", f"FROM hf.co/{repo_id}:", 1), False
    if _LANGUAGES.get(name) == "python":
        return serve.replace("'.'", repr(repo_id), 1), False
    words = shlex.split(serve)
    if "." in words:
        words[words.index(".")] = repo_id
    else:
        place = next((i for i, word in enumerate(words) if i and words[i - 1] == "-m" and word.startswith("./")), None)
        if place is None:
            return serve, True
        words[place - 1 : place + 1] = ["-hf", repo_id, "--hf-file", words[place].removeprefix("./")]
    return shlex.join(words), False
