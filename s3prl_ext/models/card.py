"""The README.md of a model that this package writes, with the header that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CardScore:
    """A score that the hub shows next to the model.

    Attributes:
        task: ``-d`` of the task.
        split: what was scored.
        metric: name of the metric.
        unit: its unit.
        value: the score.
    """

    task: str
    split: str
    metric: str
    unit: str
    value: float


def write_card(
    title: str,
    about: str,
    sections: Mapping[str, str],
    tags: Sequence[str],
    base_models: Sequence[str] = (),
    scores: Sequence[CardScore] = (),
) -> str:
    """Return a model card as Markdown.

    Args:
        title: name of the model.
        about: what it is, in a few sentences.
        sections: heading -> text; an empty text leaves its section out.
        tags: for the hub's search.
        base_models: ids on the hub of the models that it was made from.
        scores: for the hub's table of results.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=score.task,
            dataset_type=score.task,
            dataset_name=f"corpus of {score.task}",
            dataset_split=score.split,
            metric_type=score.metric,
            metric_name=f"{score.metric} ({score.unit})",
            metric_value=score.value,
        )
        for score in scores
    ]
    named = {"model_name": title, "eval_results": results} if results else {}
    header = ModelCardData(tags=list(tags), base_model=list(base_models) or None, **named)  # type: ignore[arg-type]
    body = [f"## {heading}\n\n{text}" for heading, text in sections.items() if text]
    return "\n\n".join([f"---\n{header.to_yaml().strip()}\n---", f"# {title}", about, *body]) + "\n"
