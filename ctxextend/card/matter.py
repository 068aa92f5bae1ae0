"""The front matter of a result's card: the source's, with what is true of the result in place of what no longer is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ctxextend.card.evidence import Evaluation, Evidence
from ctxextend.changes import Export
from ctxextend.plan import Plan, SourceRef

#: What the Hub knows of how a model relates to its base (hub-docs, model-cards.md, "Specifying a base model").
RELATIONS: Final = ("adapter", "merge", "quantized", "finetune")

#: Keys of the source that say nothing true of the result. Numbers in a model-index were measured on the source, a
#: new_version replaces the source. The last three are no keys of a card: the Hub's own classes fail on them.
_DROPPED: Final = frozenset(
    {"model-index", "new_version", "base_model_relation", "eval_results", "ignore_metadata_errors", "self"}
)

#: ``org/name`` as the Hub has it.
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")

#: The dataset of a result that isn't of texts: prompts that the task makes itself.
_MADE: Final = "ctxextend-{}"

#: What all results are of.
_TASK: Final = {"type": "text-generation", "name": "Text generation"}

#: What the tasks of retrieval are called.
TASKS: Final[Mapping[str, str]] = {
    "passkey": "pass keys",
    "needles": "needles",
    "variables": "variable tracking",
    "words": "word extraction",
}


def repository_of(source: SourceRef) -> str | None:
    """The Hub's repository that a plan was made for; None for a checkpoint that lay in a folder."""
    name = "/".join(source.source.split("/")[:2])
    return name if source.revision is not None and _REPOSITORY.fullmatch(name) else None


def merged_matter(
    source: Mapping[Any, Any], plan: Plan, *, name: str, repo_id: str | None, ours: bool, evidence: Evidence | None
) -> dict[str, Any]:
    """The front matter of ``plan``'s result, published as ``repo_id``; ``ours``: the source's card was made here too.

    ``name`` is the model's in a list of results.
    """
    matter = {key: value for key, value in source.items() if isinstance(key, str) and key not in _DROPPED}
    base = _base_models(matter.pop("base_model", None), plan, repo_id=repo_id, ours=ours)
    if base:
        matter["base_model"] = base[0] if len(base) == 1 else base
        kept = not ours and base != [repository_of(plan.source)]
        relation = _relation(source.get("base_model_relation"), plan, kept=kept)
        if relation is not None:
            matter["base_model_relation"] = relation
    matter["tags"] = _tags(matter.pop("tags", None), plan)
    if plan.to == "gguf":
        matter["library_name"] = "gguf"
    elif matter.get("library_name") == "gguf":
        matter["library_name"] = "transformers"
    if evidence is not None and evidence.evaluation is not None:
        results = list(_results(evidence.evaluation))
        if results:
            matter["model-index"] = [{"name": name, "results": results}]
    return matter


def matter_text(matter: Mapping[str, Any]) -> str:
    """Front matter as YAML, between its fences. What could be taken for another type is quoted."""
    import yaml

    text = yaml.safe_dump(dict(matter), sort_keys=False, allow_unicode=True, width=1 << 16)
    return f"---\n{text}---\n"


def _base_models(said: Any, plan: Plan, *, repo_id: str | None, ours: bool) -> list[str]:
    """The repository that the result was made of, or what the source's card names where it lies in none.

    An earlier output of ours has its weights, unless they were exported, from what its own card names: the two are
    made of the same, and not one of the other.
    """
    named = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    others = [base for base in named if isinstance(base, str) and base != repo_id]
    exported = any(isinstance(action, Export) for action in plan.actions)
    if ours and others and not exported:
        return others
    repository = repository_of(plan.source)
    return others if repository in (None, repo_id) else [repository]


def _relation(said: Any, plan: Plan, *, kept: bool) -> str | None:
    """How the result relates to its base, in the Hub's words; ``kept``: to a base that the source's card names.

    The Hub has no word for a checkpoint whose context was extended without training. ``finetune`` is the one by which
    it lists whole models of the same format; without any it would guess, and of quantised weights guess wrong.
    """
    if plan.to == "gguf":
        return "quantized"
    if kept:
        return said if said in RELATIONS else None
    return "finetune"


def _tags(said: Any, plan: Plan) -> list[str]:
    listed = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    other = "safetensors" if plan.to == "gguf" else "gguf"
    kept = [tag for tag in listed if isinstance(tag, str) and tag != other]
    extended = plan.target_context > plan.trained_context
    added = ("long-context", "context-extension", plan.method) if extended else ()
    return list(dict.fromkeys((*kept, *added, "ctxextend", *(("gguf",) if plan.to == "gguf" else ()))))


def _results(evaluation: Evaluation) -> Iterable[dict[str, Any]]:
    """The results as the Hub's model-index has them: one entry a dataset, each with its metrics.

    The texts are files, so that their dataset is ``text``, by which the datasets library loads such.
    """
    texts = ", ".join(text.name for text in evaluation.texts)
    metrics = list(_perplexities(evaluation))
    if metrics:
        yield {"task": dict(_TASK), "dataset": {"name": texts or "text", "type": "text"}, "metrics": metrics}
    for kind in dict.fromkeys(rate.kind for rate in evaluation.rates):
        title = TASKS.get(kind, kind)
        yield {
            "task": dict(_TASK),
            "dataset": {"name": title[:1].upper() + title[1:], "type": _MADE.format(kind)},
            "metrics": [
                {
                    "type": "accuracy",
                    "value": round(rate.rate, 4),
                    "name": f"Share found at {rate.length} tokens",
                    "args": {"asked": rate.asked, "found": rate.found},
                }
                for rate in evaluation.rates
                if rate.kind == kind and rate.depth is None
            ],
        }


def _perplexities(evaluation: Evaluation) -> Iterable[dict[str, Any]]:
    trained = evaluation.trained_context
    for curve in evaluation.curves:
        if curve.whole is not None:
            yield {
                "type": "perplexity",
                "value": round(curve.whole, 4),
                "name": f"Perplexity at {curve.length} tokens",
                "args": {"length": curve.length, "windows": curve.windows},
            }
        if curve.ratio is not None:
            yield {
                "type": "perplexity-ratio",
                "value": round(curve.ratio, 4),
                "name": f"Perplexity from {trained} to {curve.length} tokens, over that of the same text read with "
                f"at most {trained} tokens before it",
                "args": {"length": curve.length, "windows": curve.windows},
            }
    for sliding in evaluation.sliding:
        if sliding.perplexity is not None:
            yield {
                "type": "perplexity",
                "value": round(sliding.perplexity, 4),
                "name": f"Sliding-window perplexity at {sliding.length} tokens",
                "args": {"length": sliding.length, "stride": sliding.stride, "windows": sliding.windows},
            }
