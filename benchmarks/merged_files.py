"""A merged model as a file, from two models as files: CPU seconds and peak memory, against mergekit.

``python -m benchmarks.merged_files --mergekit FOLDER`` writes two HuBERT of base size with random weights, and merges
query, key and value of all layers (lambda 0.1) into a transformers folder: ours by ``s3prl-ext merge``, theirs by
mergekit's ``linear`` with a filter, which gives the same weights. Each side runs in processes of its own, in turn; time
and memory count from after the imports. FOLDER is where mergekit is installed, next to this package's environment:

    pip install --target FOLDER --no-deps mergekit peft accelerate immutables
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import process_time

import s3prl_ext
from benchmarks import measure

LAMBDA = 0.1
PROJECTIONS = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
SIDES = ("ours", "mergekit")


def write_models(folder: Path, layers: int, width: int) -> None:
    """Write two HuBERT as transformers folders, and the configuration of our merge."""
    s3prl_ext.install()
    import torch
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    for seed, name in enumerate(("target", "source")):
        torch.manual_seed(seed)
        HubertModel(HubertConfig(**sizes, intermediate_size=4 * width)).save_pretrained(folder / name)
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder / name)
    config = f"target: {{model: {folder / 'target'}}}\nsource: {{model: {folder / 'source'}}}\nlambda: {LAMBDA}\n"
    (folder / "merge.yaml").write_text(config)


def one_side(side: str, folder: Path, mergekit: Path | None) -> dict[str, float]:
    """Merge one way in this process; return its CPU seconds and how far it raised the peak memory."""
    s3prl_ext.install()
    out = folder / side
    if side == "ours":
        from s3prl_ext.commands import merge

        arguments = ["-u", "merged_attention", "-g", str(folder / "merge.yaml"), "--out", str(out)]

        def work() -> None:
            if merge.main(arguments):
                raise RuntimeError("the merge failed")

    else:
        sys.path.insert(0, str(mergekit))
        import transformers

        transformers.HubertModel.get_input_embeddings = lambda _: None  # mergekit asks for the vocabulary
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        weights = [[{"filter": name, "value": share} for name in PROJECTIONS] for share in (1 - LAMBDA, LAMBDA)]
        models = [
            {"model": str(folder / name), "parameters": {"weight": [*weight, {"value": rest}]}}
            for name, weight, rest in zip(("target", "source"), weights, (1.0, 0.0), strict=True)
        ]
        config = MergeConfiguration.model_validate({"models": models, "merge_method": "linear", "dtype": "float32"})
        options = MergeOptions(copy_tokenizer=False, quiet=True, lazy_unpickle=True)

        def work() -> None:
            run_merge(config, str(out), options)

    start = process_time()
    extra = measure.raised_mb(work)
    return {"cpu_s": process_time() - start, "peak_mb": extra}


def largest_difference(folder: Path) -> float:
    """Return the largest difference of a weight between the two merged models."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / side / "model.safetensors") for side in SIDES)
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"other weights: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def main() -> None:
    """Merge both ways in turn and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mergekit", type=Path, required=True, help="folder that mergekit is installed in")
    parser.add_argument("--layers", type=int, default=12, help="encoder layers (default 12)")
    parser.add_argument("--width", type=int, default=768, help="width (default 768)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--side", choices=[*SIDES, "write"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side == "write":
        write_models(flags.folder, flags.layers, flags.width)
        return
    if flags.side:
        print(json.dumps(one_side(flags.side, flags.folder, flags.mergekit)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as temporary:

        def in_process(side: str) -> str:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.merged_files", *sys.argv[1:]]
            command += ["--side", side, "--folder", temporary]
            return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout

        in_process("write")
        for _ in range(flags.runs):
            for side in SIDES:
                shutil.rmtree(Path(temporary) / side, ignore_errors=True)
                found[side].append(json.loads(in_process(side).strip().splitlines()[-1]))
        difference = largest_difference(Path(temporary))
    rows = {side: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for side, runs in found.items()}
    for row in rows.values():
        row["cpu_times_ours"] = row["cpu_s"] / rows["ours"]["cpu_s"]
        row["memory_times_ours"] = row["peak_mb"] / rows["ours"]["peak_mb"]
    measure.report("merged_files", rows, largest_difference=difference, runs=flags.runs)


if __name__ == "__main__":
    main()
