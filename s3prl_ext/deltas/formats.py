"""Write a task's change of the upstream in a format of others: an adapter of peft, or a sparse task vector."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from s3prl_ext.attention.files import owners_of
from s3prl_ext.deltas import peft_format, task_vector
from s3prl_ext.deltas.plain_upstream import build_untuned, is_merged, plain_upstream
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import UsageError
from s3prl_ext.models.card import write_card

PEFT, VECTOR = "peft", "task_vector"


def write(task: TrainedTask, kind: str, folder: Path, title: str) -> None:
    """Write a task's change with a card into an existing folder.

    Args:
        kind: ``peft`` or ``task_vector``.
        title: what the card calls it.

    Raises:
        UsageError: the change has no such form.
        DataError: the base is missing, or another one.
    """
    if is_merged(str(task.spec.upstream)):
        raise UsageError(
            f"{task.path} was tuned on a merged upstream, which others cannot load as a model: write that with "
            "s3prl-ext merge first, and train on it."
        )
    plain = plain_upstream(task.spec)
    base = build_untuned(task.spec).state_dict()
    delta = task.over(base)
    if kind == PEFT:
        if not plain.model.is_dir():
            raise UsageError(f"{plain.model} is a checkpoint of s3prl; peft takes transformers folders only.")
        config, tensors = peft_format.adapter_files(delta, str(task.spec.upstream_ckpt), str(task.path))
        (folder / peft_format.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, folder / peft_format.WEIGHT_FILE, metadata={"format": "pt"})
    else:
        shapes = {name: tuple(reader[name].shape) for name, reader in owners_of(plain.model).items()}
        tensors, header = task_vector.task_vector(delta, base, shapes, str(task.path))
        save_file(tensors, folder / task_vector.WEIGHT_FILE, metadata=header)
    (folder / "README.md").write_text(_card(task, kind, title), encoding="utf-8")


def _card(task: TrainedTask, kind: str, title: str) -> str:
    base = str(task.spec.upstream_ckpt)
    downstream = task.info.get("downstream")
    about = {
        PEFT: "The LoRA of a tuned speech model, in the format of peft.",
        VECTOR: "What tuning changed in a speech model: a sparse task vector.",
    }[kind]
    facts = f"Base: `{base}`. Task: {downstream or 'unknown'}. Trained by s3prl_ext; the task's head is in `head.ckpt`."
    ids = [] if Path(base).expanduser().exists() else [base]
    sections = {"Model": facts, "Use": f"```python\n{_python(kind, base)}\n```"}
    tags = ["speech", "s3prl", *(["peft", "lora"] if kind == PEFT else ["task-vector"])]
    return write_card(title, about, sections, tags, ids)


def _python(kind: str, base: str) -> str:
    if kind == PEFT:
        return (
            "from peft import PeftModel\nfrom transformers import AutoModel\n\n"
            f'model = PeftModel.from_pretrained(AutoModel.from_pretrained("{base}"), ".")\n'
            "model = model.merge_and_unload()  # some models (WavLM) never call the layers that peft puts in"
        )
    return (
        "from safetensors import safe_open\n\n"
        f'vector = safe_open("{task_vector.WEIGHT_FILE}", "pt")\n'
        'for name in {key.rpartition(".")[0] for key in vector.keys()}:  # state: the base\'s tensors by name\n'
        '    state[name].view(-1)[vector.get_tensor(f"{name}.indices")] += vector.get_tensor(f"{name}.values")'
    )
