"""Write a task's change of the upstream in a format of others: an adapter of peft, or a sparse task vector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from s3prl_ext.attention.files import owners_of
from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.deltas import peft_format
from s3prl_ext.deltas.plain_upstream import is_merged, plain_upstream
from s3prl_ext.deltas.tensor_names import Shapes, match_names
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import UsageError
from s3prl_ext.models.card import write_card

PEFT, VECTOR = "peft", "task_vector"
VECTOR_FORMAT, VECTOR_FILE = "sparse_task_vector", "task_vector.safetensors"


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
    if task.is_rounded:
        raise UsageError(
            f"{task.path} was tuned with base_dtype bfloat16: added to weights that are not rounded, its changes would "
            "make another model; write the whole one (no --format)."
        )
    plain = plain_upstream(task.spec)
    model = task.build_untuned()
    base, delta = model.state_dict(), task.over(model)
    if kind == PEFT:
        if not plain.model.is_dir():
            raise UsageError(f"{plain.model} is a checkpoint of s3prl; peft takes transformers folders only.")
        config, tensors = peft_format.adapter_files(delta, str(task.spec.upstream_ckpt), str(task.path))
        (folder / peft_format.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, folder / peft_format.WEIGHT_FILE, metadata={"format": "pt"})
    else:
        shapes = {name: tuple(reader[name].shape) for name, reader in owners_of(plain.model).items()}
        tensors, header = task_vector(delta, base, shapes, str(task.path))
        save_file(tensors, folder / VECTOR_FILE, metadata=header)
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
        f'vector = safe_open("{VECTOR_FILE}", "pt")\n'
        'for name in {key.rpartition(".")[0] for key in vector.keys()}:  # state: the base\'s tensors by name\n'
        '    state[name].view(-1)[vector.get_tensor(f"{name}.indices")] += vector.get_tensor(f"{name}.values")'
    )


def task_vector(
    delta: Delta, base: Mapping[str, Tensor], shapes: Shapes, where: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a sparse task vector and the header of its file: the difference of each changed entry.

    Task arithmetic (Ilharco et al. 2023) adds and scales such differences. In float32 base + (tuned - base) may differ
    from the tuned value in its last bit: what is exact is ``delta.safetensors``.

    Args:
        delta: over `base`, with bits.
        base: state dict of the untuned upstream.
        shapes: shape of each tensor of the base's files.
        where: what the delta is called in messages.

    Returns:
        For each changed tensor NAME of the files ``NAME.indices`` (int64, flat, sorted) and ``NAME.values`` (float32,
        tuned - base); and the header: format, hash of the base, and the shape of each tensor as JSON.

    Raises:
        UsageError: the delta changes no entry of the base.
        DataError: the files are those of another model.
    """
    if not delta.indices or delta.added:
        method = (delta.info.get("tuning") or {}).get("method") or "no tuning method"
        raise UsageError(
            f"{where} holds {method}; a task vector is the change of a child network or of bitfit: "
            "for a lora use --format peft."
        )
    names = match_names({name: tuple(tensor.shape) for name, tensor in base.items()}, shapes, where)
    tuned = {name: base[name].clone() for name in delta.indices}
    delta.toggle(tuned)
    tensors: dict[str, Tensor] = {}
    for name, indices in delta.indices.items():
        tensors[f"{names[name]}.indices"] = indices.to(torch.int64)
        tensors[f"{names[name]}.values"] = (tuned[name] - base[name]).reshape(-1)[indices]
    stored = {names[name]: list(shapes[names[name]]) for name in delta.indices}
    header = {"format": VECTOR_FORMAT, "base_sha256": delta.base_sha256, "shapes": json.dumps(stored)}
    return tensors, header
