"""A billion weights on a CPU: time and peak memory of merge, Fisher pass, choice, child step and delta.

``python -m benchmarks.large_model make --folder XLSR`` writes a model of XLS-R 1B's shape with random weights (962 M
weights, 3.9 GB) as a transformers folder, with ``--kind bert`` a BERT of its depth and width, for ``merge --source``.
Each of ``merge``, ``fisher``, ``step`` and ``delta`` then is a process of its own, so that its peak memory is its own.
``--layers 2`` is the same in small.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import s3prl_ext
from benchmarks import measure
from s3prl_ext.child_tuning import delta, masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.fisher import FisherEstimate
from s3prl_ext.child_tuning.held_weight import round_base

DENSITIES = (0.1, 0.01)


def make(flags: argparse.Namespace) -> dict[str, Any]:
    """Write the model tensor by tensor from one generator."""
    import transformers
    from safetensors.torch import save_file

    sizes = {"hidden_size": 1280, "num_hidden_layers": flags.layers, "num_attention_heads": 16}
    sizes["intermediate_size"] = 5120
    if flags.kind == "bert":
        config, kind = transformers.BertConfig(**sizes), transformers.BertModel
    else:
        config = transformers.Wav2Vec2Config(
            **sizes, conv_bias=True, feat_extract_norm="layer", do_stable_layer_norm=True, layerdrop=0.0,
            mask_time_prob=0.0,
        )  # fmt: skip
        kind = transformers.Wav2Vec2Model
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in kind(config).state_dict().items()}
    generator, state = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        one = name.endswith("original0") or ("norm" in name and name.endswith("weight"))
        value = torch.ones(shape) if one else torch.zeros(shape)
        state[name] = value if one or name.endswith("bias") else value.normal_(0, 0.02, generator=generator)
    flags.folder.mkdir(parents=True, exist_ok=True)
    save_file(state, flags.folder / "model.safetensors", {"format": "pt"})
    config.architectures = [kind.__name__]
    config.save_pretrained(flags.folder)
    if flags.kind == "xlsr":
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(flags.folder)
    return {"weights": sum(shape.numel() for shape in shapes.values())}


def merge(flags: argparse.Namespace) -> dict[str, Any]:
    """Merge the model with `flags.source`, or with itself, by the command, into a folder that is removed again."""
    from s3prl_ext.commands import merge as command

    out = flags.folder.with_name(f"{flags.folder.name}_merged")
    config = flags.folder.with_name(f"{flags.folder.name}_merge.yaml")
    source = flags.source or flags.folder
    config.write_text(f"target: {{model: {flags.folder}}}\nsource: {{model: {source}}}\nlambda: 0.1\n")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            command.main(["-g", str(config), "--out", str(out)])
        return {"files_gb": sum(path.stat().st_size for path in out.rglob("*")) / 1e9}
    finally:
        config.unlink()
        shutil.rmtree(out, ignore_errors=True)


def loaded(flags: argparse.Namespace) -> tuple[torch.nn.Module, dict[str, torch.nn.Parameter]]:
    """Return the model in evaluation mode, and its eligible weights, which alone require grad."""
    import transformers

    model = transformers.AutoModel.from_pretrained(flags.folder)
    model.requires_grad_(False)
    parameters = dict(eligible_parameters(model))
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return model.eval(), parameters


def loss_of(model: torch.nn.Module, flags: argparse.Namespace) -> torch.Tensor:
    """Return a loss of random clips."""
    clips = torch.randn(flags.batch, int(flags.seconds * 16000))
    return model(clips).last_hidden_state.square().mean()  # type: ignore[no-any-return]


def fisher(flags: argparse.Namespace) -> dict[str, Any]:
    """Estimate the Fisher information on `flags.runs` batches, then choose two densities."""
    model, parameters = loaded(flags)
    running, rows = FisherEstimate(parameters, clip=flags.clip), {}
    started = perf_counter()
    for _ in range(flags.runs):
        running.add(loss_of(model, flags))
    rows["batch_s"], rows["pass_gb"] = (perf_counter() - started) / flags.runs, peak_gb()
    started = perf_counter()
    chosen = masks.nested_top_k(running.scores, DENSITIES)
    rows["choice_s"] = perf_counter() - started
    return rows | {"chosen": masks.count(chosen.at(DENSITIES[0]))}


def child_of(parameters: dict[str, torch.nn.Parameter], flags: argparse.Namespace) -> ChildNetwork:
    """Return a random child network."""
    sizes = {name: p.numel() for name, p in parameters.items()}
    held = flags.base_dtype == "bfloat16"
    if held:
        round_base(parameters)
    return ChildNetwork(parameters, masks.bernoulli(sizes, flags.density, 0), held=held)


def step(flags: argparse.Namespace) -> dict[str, Any]:
    """Train a random child network.

    The weights are in memory of their own, as after loading a checkpoint of s3prl's, and not mapped from a file.
    """
    model, parameters = loaded(flags)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    child = child_of(parameters, flags)
    optimizer = torch.optim.AdamW(child.parameters(), lr=1e-4, fused=True)
    rows = {"trainable": len(child), "ready_gb": measure.resident_mb() / 1e3, "loading_peak_gb": peak_gb()}
    measure.forget_peak()
    started = perf_counter()
    for _ in range(flags.runs):
        loss_of(model, flags).backward()
        child.gather_gradients()
        optimizer.step()
        child.write_back()
    return rows | {"step_s": (perf_counter() - started) / flags.runs}


def deltas(flags: argparse.Namespace) -> dict[str, Any]:
    """Store what a child network has changed, read it, apply it and take it back."""
    from s3prl_ext.training.tuned_upstream import TunedUpstream

    model, parameters = loaded(flags)
    path = flags.folder.with_name(f"{flags.folder.name}.delta.safetensors")
    started = perf_counter()
    tuned = TunedUpstream(model)
    rows: dict[str, Any] = {"hash_s": perf_counter() - started}
    child = child_of(parameters, flags)
    tuned.track(child.mask)
    with torch.no_grad():
        child.values.add_(1e-3 * torch.randn_like(child.values))
    child.write_back()
    try:
        started = perf_counter()
        delta.save(tuned.delta({}, {}), path)
        rows |= {"save_s": perf_counter() - started, "file_gb": path.stat().st_size / 1e9}
        tuned.revert()
        started = perf_counter()
        found = delta.load(path)
        found.toggle(model.state_dict())
        rows["apply_s"] = perf_counter() - started
        found.toggle(model.state_dict())
        found.check_base(model.state_dict())
    finally:
        path.unlink(missing_ok=True)
    return rows


def peak_gb() -> float:
    """Return the largest resident memory of this process so far, in GB, mapped files included."""
    return measure.peak_mb() / 1e3


STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "make": make, "merge": merge, "fisher": fisher, "step": step, "delta": deltas,
}  # fmt: skip


def main() -> None:
    """Run a stage and print its row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--folder", type=Path, required=True, help="where the model is, or is written")
    parser.add_argument("--kind", choices=("xlsr", "bert"), default="xlsr", help="what make writes (default xlsr)")
    parser.add_argument("--source", type=Path, help="what merge merges in (default: the model itself)")
    parser.add_argument("--layers", type=int, default=48, help="encoder layers (default 48)")
    parser.add_argument("--density", type=float, default=0.01, help="of the child network (default 0.01)")
    parser.add_argument("--base-dtype", default="float32", help="of the frozen weights in step (default float32)")
    parser.add_argument("--clip", default="none", help="of the Fisher pass (default none)")
    parser.add_argument("--batch", type=int, default=2, help="clips per batch (default 2)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a clip (default 2)")
    parser.add_argument("--runs", type=int, default=2, help="batches or steps (default 2)")
    flags = parser.parse_args()
    s3prl_ext.install()
    started = perf_counter()
    row = STAGES[flags.stage](flags)
    row |= {"all_s": perf_counter() - started, "peak_gb": peak_gb()}
    settings = {key: str(value) for key, value in vars(flags).items() if key not in ("stage", "folder", "source")}
    measure.report("large_model", {flags.stage: row}, settings=settings)


if __name__ == "__main__":
    main()
