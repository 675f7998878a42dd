"""Merging at load: HuBERT-large with the attention of BERT-large, against two whole models and copies.

``python -m benchmarks.merge_at_load``. Random checkpoints of the real sizes (315M and 335M parameters) are written to a
temporary folder. Each side runs in processes of its own; time and memory count from after the imports to the finished
upstream: CPU seconds of the process, and by how much its peak resident memory grew, mapped files included. Ours also
checks for NaN, measures the change of each matrix and hashes both models, which the others do not.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

from benchmarks import measure

LAMBDA = 0.1
NAMES = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
ATTENTION = re.compile(r"encoder\.layers\.(?P<layer>\d+)\.attention\.(?P<projection>[qkv]_proj)\.weight")


def write_models(folder: Path, layers: int, width: int) -> tuple[int, int]:
    """Write random checkpoints of HuBERT's and BERT's large architectures; returns their numbers of parameters."""
    import s3prl_ext

    s3prl_ext.install()
    from transformers import BertConfig, BertModel, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    sizes["intermediate_size"] = 4 * width
    large = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    counts = []
    for name, model in (
        ("hubert", HubertModel(HubertConfig(**sizes, **large))),
        ("bert", BertModel(BertConfig(**sizes))),
    ):
        model.save_pretrained(folder / name)
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder / "hubert")
    config = f"target: {{model: {folder / 'hubert'}}}\nsource: {{model: {folder / 'bert'}}}\nlambda: {LAMBDA}\n"
    (folder / "merge.yaml").write_text(config)
    return counts[0], counts[1]


def run_ours(folder: Path) -> Any:
    """Build the merged upstream."""
    from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention

    return merged_attention(model_config=str(folder / "merge.yaml"))


def run_naive(folder: Path) -> Any:
    """Build both models, load their weights into them, as s3prl does with its own, and interpolate out of place."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel, HubertConfig, HubertModel

    models = {}
    for name, config_class, model_class in (("hubert", HubertConfig, HubertModel), ("bert", BertConfig, BertModel)):
        models[name] = model_class(config_class.from_pretrained(folder / name))
        models[name].load_state_dict(load_file(folder / name / "model.safetensors"), strict=False)
    return merged_out_of_place(models["hubert"], models["bert"])


def run_from_pretrained(folder: Path) -> Any:
    """Do the same with transformers' ``from_pretrained``, which since version 5 maps the files into memory."""
    from transformers import AutoModel

    return merged_out_of_place(*(AutoModel.from_pretrained(folder / name) for name in ("hubert", "bert")))


def merged_out_of_place(target: Any, source: Any) -> Any:
    """Interpolate all query, key and value matrices with new tensors, and load them into `target`."""
    theirs, merged = source.state_dict(), {}
    for name, tensor in target.state_dict().items():
        match = ATTENTION.fullmatch(name)
        if match:
            other = theirs[f"encoder.layer.{match['layer']}.attention.self.{NAMES[match['projection']]}.weight"]
            merged[name] = LAMBDA * other + (1 - LAMBDA) * tensor
    target.load_state_dict(merged, strict=False)
    return target


RUN = {"ours": run_ours, "two models": run_naive, "two from_pretrained": run_from_pretrained}


def peak_mb() -> float:
    """Return the highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(side: str, folder: Path) -> None:
    """Run one side in this process and print what it took."""
    import s3prl_ext

    s3prl_ext.install()
    import s3prl.hub
    import torch
    import transformers
    from transformers import AutoModel, BertModel, HubertModel, Wav2Vec2FeatureExtractor

    import s3prl_ext.upstreams.merged_attention.expert

    del s3prl.hub, transformers, AutoModel, BertModel, HubertModel, Wav2Vec2FeatureExtractor
    before, started = peak_mb(), process_time()
    with torch.no_grad():
        model = RUN[side](folder)
    print(json.dumps({"cpu_s": process_time() - started, "peak_mb": peak_mb() - before, "class": type(model).__name__}))


def measured(side: str, folder: Path) -> dict[str, float]:
    """Run one side in a process of its own."""
    return json.loads(in_child(side, folder))


def in_child(side: str, folder: Path, *flags: str) -> str:
    """Run this script in a process of its own and return the last line that it prints."""
    command = [sys.executable, "-m", "benchmarks.merge_at_load", "--side", side, "--folder", str(folder), *flags]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().splitlines()[-1]


def main() -> None:
    """Compare the sides and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--side", choices=[*RUN, "write"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="folder with the checkpoints; written if empty, and then kept")
    flags = parser.parse_args()
    if flags.side == "write":
        print(write_models(flags.folder, flags.layers, flags.width))
        return
    if flags.side:
        child(flags.side, flags.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.folder or Path(temporary)
        if not (folder / "merge.yaml").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            sizes = ["--layers", str(flags.layers), "--width", str(flags.width)]
            in_child("write", folder, *sizes)  # elsewhere, so that this process stays small
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in RUN}
        for _ in range(flags.runs):
            for side in RUN:
                runs[side].append(measured(side, folder))
    rows = {
        side: {key: statistics.median(run[key] for run in found) for key in ("cpu_s", "peak_mb")}
        for side, found in runs.items()
    }
    for row in rows.values():
        row["cpu_times_ours"] = row["cpu_s"] / rows["ours"]["cpu_s"]
        row["memory_times_ours"] = row["peak_mb"] / rows["ours"]["peak_mb"]
    measure.report("merge_at_load", rows, layers=flags.layers, width=flags.width, runs=flags.runs)


if __name__ == "__main__":
    main()
