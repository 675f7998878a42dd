"""A whole training step of a child network: CPU seconds and peak memory, against the released way.

``python -m benchmarks.training_step`` builds a wav2vec 2.0 of base width in s3prl's code (``--layers`` encoder layers,
frozen conv extractor), feeds it random audio and trains towards a fixed loss. The baseline computes dense gradients and
steps the released optimizer. Each way runs in a process of its own, in turn, so that its peak memory is its own; the
memory of the model and the audio, which both ways need, is in both figures and also given apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from statistics import median
from time import process_time

import torch

from benchmarks import measure
from benchmarks.optimizer_step import DenseMaskedAdamW
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW
from s3prl_ext.child_tuning.units import places_of, random_units

WAYS = ("released", "ours", "ours_dense_gradients", "full")


def build(layers: int, family: str) -> torch.nn.Module:
    """Return a randomly initialised wav2vec 2.0 of base width in train mode, its conv extractor frozen."""
    import s3prl_ext

    s3prl_ext.install()
    torch.manual_seed(0)
    if family == "transformers":
        import transformers

        options = {"num_hidden_layers": layers, "layerdrop": 0.0, "mask_time_prob": 0.0, "attn_implementation": "sdpa"}
        model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**options)).train()
        model.freeze_feature_encoder()
        return model
    from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(encoder_layers=layers, encoder_layerdrop=0.0, feature_grad_mult=0.0)
    return Wav2Vec2Model(config).train()


def peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_way(way: str, flags: argparse.Namespace) -> dict[str, float]:
    """Train `flags.runs` steps one way; return the median seconds and peak memory in MB."""
    model = build(flags.layers, flags.family)
    wavs = torch.randn(flags.batch, int(flags.seconds * 16000))
    parameters = dict(eligible_parameters(model))
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    if flags.unit == "row":
        places = places_of({name: tuple(p.shape) for name, p in parameters.items()}, "row")
        mask = random_units([flags.density], places, 0, "global").at(flags.density)
    else:
        mask = masks.bernoulli({name: p.numel() for name, p in parameters.items()}, flags.density, seed=0)
    before = peak_mb()
    if way.startswith("ours"):
        child = ChildNetwork(parameters, mask, sparse_gradients=way == "ours")
        optimizer = ChildnetAdamW(child.parameters(), lr=1e-4)
    elif way == "full":
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-4, fused=True)
    else:
        kept = [torch.zeros(p.shape, dtype=torch.bool) for p in parameters.values()]
        for name, flags_of in zip(parameters, kept):
            flags_of.view(-1)[mask.get(name, torch.zeros(0)).long()] = True
        dense = DenseMaskedAdamW([p.data for p in parameters.values()], kept)
    seconds = []
    for _ in range(flags.runs + 1):
        start = process_time()
        if flags.family == "transformers":
            features = model(wavs).last_hidden_state
        else:
            features = model(wavs, mask=False, features_only=True)["x"]
        features.square().mean().backward()
        if way.startswith("ours"):
            child.gather_gradients()
            optimizer.step()
            child.write_back()
        elif way == "full":
            optimizer.step()
            optimizer.zero_grad()
        else:
            dense.step([p.grad for p in parameters.values()])
            for parameter in parameters.values():
                parameter.grad = None
        seconds.append(process_time() - start)
    return {"seconds": median(seconds[1:]), "peak_mb": peak_mb(), "beside_model_mb": peak_mb() - before}


def main() -> None:
    """Run every way in a process of its own, `--rounds` times in turn, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="encoder layers (default 12)")
    parser.add_argument("--family", choices=("s3prl", "transformers"), default="s3prl", help="whose code the model is")
    parser.add_argument("--density", type=float, default=0.01, help="density of the child network (default 0.01)")
    parser.add_argument("--unit", choices=("entry", "row"), default="entry", help="what trains: weights, or whole rows")
    parser.add_argument("--batch", type=int, default=4, help="clips per batch (default 4)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a clip (default 1)")
    parser.add_argument("--runs", type=int, default=5, help="steps timed per process (default 5)")
    parser.add_argument("--rounds", type=int, default=2, help="processes per way (default 2)")
    parser.add_argument("--way", choices=WAYS, help="run one way only, and print its figures as JSON")
    flags = parser.parse_args()
    if flags.way:
        print(json.dumps(one_way(flags.way, flags)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(flags.rounds):
        for way in WAYS:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training_step", *sys.argv[1:], "--way", way]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[way].append(json.loads(output.strip().splitlines()[-1]))
    middle = {way: {key: median(run[key] for run in runs) for key in runs[0]} for way, runs in found.items()}
    rows = {
        way: row | {"released_over_this": middle["released"]["seconds"] / row["seconds"],
                    "memory_over_released": row["peak_mb"] / middle["released"]["peak_mb"],
                    "beside_over_released": row["beside_model_mb"] / middle["released"]["beside_model_mb"]}
        for way, row in middle.items()
    }  # fmt: skip
    settings = {key: value for key, value in vars(flags).items() if key != "way"}
    measure.report("training_step", rows, settings=settings)


if __name__ == "__main__":
    main()
