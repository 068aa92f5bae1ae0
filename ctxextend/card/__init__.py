"""The model card of a result: the source's card, with what was done, by what it is read, what was measured, its limits.

Made of the plan in the manifest and the evidence alone. What the source's card says stays, below ours.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from ctxextend.apply import OVERRIDES, Manifest
from ctxextend.card.changes import changes_part, config_only
from ctxextend.card.evidence import Evidence, pictures_of, read_evidence
from ctxextend.card.markdown import BEGIN, END, block, code, one_line, plain
from ctxextend.card.matter import matter_text, merged_matter, repository_of
from ctxextend.card.numbers import evaluation_part, require_evidence_of
from ctxextend.card.serving import runtimes_part
from ctxextend.changes import Export
from ctxextend.checkpoint.card import front_matter, split_card
from ctxextend.plan import Plan
from ctxextend.tensors.places import GGUF, MANIFEST

__all__ = ["Evidence", "model_card", "pictures_of", "read_evidence"]

#: An earlier part of ours, and the empty lines after it.
_OURS: Final = re.compile(
    rf"^{re.escape(BEGIN)}[ \t]*\n.*?^{re.escape(END)}[ \t]*(?:\n[ \t]*)*(?:\n|\Z)", re.MULTILINE | re.DOTALL
)
#: Options of a command that are followed by a secret, and what the Hub's tokens look like.
_SECRET: Final = frozenset({"--token", "--api-key"})
_TOKEN: Final = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


def model_card(
    manifest: Manifest,
    *,
    source_card: str | None,
    repo_id: str | None,
    evidence: Evidence | None = None,
    command: str | None = None,
) -> str:
    """The whole text of README.md. ``source_card``: the source's; one that was made here is made anew.

    ``repo_id``: where it will be published, which serve commands then name; ``command``: what made the result.
    Raises :class:`RefusedError` for evidence that is of another model.
    """
    plan = manifest.plan
    if evidence is not None:
        require_evidence_of(evidence, plan)
    text = (source_card or "").replace("\r\n", "\n").replace("\r", "\n")
    matter, body = split_card(text)
    said = front_matter(matter)
    kept, ours = _OURS.subn("", body)
    name = _name(plan, repo_id)
    merged = merged_matter(said or {}, plan, name=name, repo_id=repo_id, ours=ours > 0, evidence=evidence)
    lines = [
        BEGIN,
        *_head(plan, name),
        *changes_part(manifest),
        *runtimes_part(manifest, repo_id),
        *(evaluation_part(evidence) if evidence is not None else ()),
        *_limits(manifest, evidence),
        *_reproduction(manifest, repo_id, command),
    ]
    if said is None:
        lines += ["The source's card begins with front matter that can't be read as YAML:", "", *block(matter, "text")]
    if kept.strip():
        lines += [f"Below is the card of {_source(plan)} as it stands. It speaks of the original.", ""]
    below = kept.strip("\n")
    return matter_text(merged) + "\n" + "\n".join((*lines, END, "")) + (f"\n{below}\n" if below else "")


def _name(plan: Plan, repo_id: str | None) -> str:
    name = repo_id.rsplit("/", 1)[-1] if repo_id is not None else plan.out.removesuffix(GGUF)
    return one_line(name) or "model"


def _source(plan: Plan) -> str:
    """The source as text: a link where it is a repository, else its name alone, since paths are nobody's business."""
    repository = repository_of(plan.source)
    if repository is None:
        return code(PurePosixPath(plan.source.name).name)
    return f"[{plain(repository)}](https://huggingface.co/{repository})"


def _head(plan: Plan, name: str) -> Iterator[str]:
    yield from (f"# {plain(name)}", "")
    kind = " as GGUF" if any(isinstance(action, Export) for action in plan.actions) else ""
    if plan.target_context > plan.trained_context and plan.method != "none":
        said = (
            f"{_source(plan)}{kind}, its context extended from {plan.trained_context} to {plan.target_context} tokens "
            f"by {code(plan.method)}, without any training."
        )
    elif plan.method == "repair":
        said = f"{_source(plan)}{kind}, its settings for {plan.target_context} tokens mended."
    else:
        said = f"{_source(plan)}{kind}; no rope was scaled."
    yield from (f"{said} Made by ctxextend {plain(plan.version)}.", "")
    revision = plan.source.revision
    if repository_of(plan.source) is not None and revision is not None:
        yield from (f"The source's revision: {code(revision)}.", "")


def _limits(manifest: Manifest, evidence: Evidence | None) -> Iterator[str]:
    plan = manifest.plan
    yield from ("## Limits", "")
    target, trained = plan.target_context, plan.trained_context
    extended = target > trained
    if extended:
        yield f"- No training was done for the positions past {trained}."
    tables = [group.after.table for group in plan.groups if group.extended and group.after is not None]
    if extended and tables and not any(table.switches for table in tables):
        yield f"- The change holds at every length, texts within the trained {trained} tokens included."
    measured = evidence.evaluation if evidence is not None else None
    if extended and measured is None:
        yield "- Quality was not measured."
    elif extended and measured is not None and measured.longest < target:
        yield f"- Nothing was measured past {measured.longest} tokens."
    if config_only(manifest):
        yield (
            f"- There are no weights here, but the changed settings alone; {code(OVERRIDES)} says how each engine "
            "takes them beside the source's."
        )
    shown = {f"{found.runtime} {found.versions}" for found in manifest.verified}
    for named in plan.misread:
        if named not in shown:
            yield f"- {plain(named)} is known to read it otherwise."
    for warning in plan.warnings:
        hint = f" ({plain(warning.hint)})" if warning.hint else ""
        yield f"- {plain(warning.message)}{hint}"
    if manifest.verified:
        yield "- The table of runtimes tells what their code reads, not that each was run with it."
    yield ""


def _reproduction(manifest: Manifest, repo_id: str | None, command: str | None) -> Iterator[str]:
    plan = manifest.plan
    yield from ("## How to reproduce", "")
    if command is not None:
        yield from (f"With ctxextend {plain(manifest.version)}:", "")
        yield from block(_without_secrets(one_line(command)), "sh")
    record = _record(manifest)
    repository = repository_of(plan.source)
    source = shlex.quote(f"{plan.source.source}@{plan.source.revision}") if repository else "PATH_OF_THE_SOURCE"
    again = f"ctxextend convert {source} --plan {shlex.quote(record)} --out {shlex.quote(plan.out)}"
    fetch = f"hf download {repo_id} {shlex.quote(record)} --local-dir .\n" if repo_id is not None else ""
    yield from (f"The plan itself is in {code(record)}, and ctxextend {plain(manifest.version)} replays it:", "")
    yield from block(fetch + again, "sh")
    yield from (f"Digest of the plan: {code(plan.digest)}.", "")


def _record(manifest: Manifest) -> str:
    """The manifest's file: beside a GGUF file that stands alone it has that one's name."""
    files = manifest.files
    alone = len(files) == 1 and files[0].path.endswith(GGUF)
    return f"{files[0].path}.{MANIFEST}" if alone else MANIFEST


def _without_secrets(command: str) -> str:
    """The command without a token, whoever put it there."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    kept = [
        word
        for i, word in enumerate(words)
        if word.partition("=")[0] not in _SECRET and (i == 0 or words[i - 1] not in _SECRET)
    ]
    return _TOKEN.sub("TOKEN", shlex.join(kept) if len(kept) < len(words) else command)
