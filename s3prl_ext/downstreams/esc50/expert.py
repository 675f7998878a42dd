"""``-d esc50``: classify environmental sounds; one run is one test fold.

Three protocols for the head (MAM, section 4.1, leaves them open):

- zero-shot: a linear head is fitted on the frozen unmerged upstream, then ``head.ckpt`` puts it on merged ones;
- zero-shot with ``head.kind: audioset``: the classifier of an AudioSet-fine-tuned BEATs and a fixed class map;
- refitted: the head is trained on the merged features themselves. Its results say that they are not zero-shot.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

from s3prl_ext.corpora.esc50 import CLASSES, dev_fold, read_clips, split_clips
from s3prl_ext.corpora.splits import split_hash
from s3prl_ext.downstreams.esc50.config import Esc50HeadConfig, default_class_map, parse_config
from s3prl_ext.downstreams.esc50.dataset import ClipDataset
from s3prl_ext.downstreams.esc50.heads import (
    AudioSetHead,
    TrainingFeatures,
    check_belongs,
    choose_linear,
    find_file,
    take_head,
    tuned_beats,
)
from s3prl_ext.downstreams.recognition.merged_decoder import UNMERGED
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.predictions import Prediction, write_predictions
from s3prl_ext.evaluation.significance import wilson
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)


class DownstreamExpert(nn.Module):
    """The task in s3prl's interface: loaders, loss of a batch, metrics of a split.

    Args:
        upstream_dim: width of the features.
        downstream_expert: the section of the task file, see :mod:`s3prl_ext.downstreams.esc50.config`.
        expdir: folder of the run; gets ``splits.json``, ``head.json`` and ``predictions-SPLIT.jsonl``.
        kwargs: the arguments of ``run_downstream.py``, of which mode, upstream and checkpoint are read.

    Raises:
        UsageError, DataError: configuration, corpus or checkpoint do not fit, in one sentence.
    """

    split_digest: Tensor  # SHA-256 of the split lists, uint8 [32]
    best_score: Tensor  # best accuracy on dev so far, [1]

    def __init__(self, upstream_dim: int, downstream_expert: dict[str, Any], expdir: str, **kwargs: Any):
        super().__init__()
        self.args = Namespace(**kwargs)
        self.expdir = Path(expdir)
        self.config = parse_config(downstream_expert)
        splits = split_clips(read_clips(self.config.datarc.esc50_root), self.config.split, self.config.fold)
        self.datasets = {name: ClipDataset(clips) for name, clips in splits.items()}
        lists = {name: [clip.name for clip in clips] for name, clips in splits.items()}
        self.splits = {"rule": self.config.split, **self._folds(), "sha256": split_hash(lists), **lists}
        digest = torch.tensor(list(bytes.fromhex(split_hash(lists))), dtype=torch.uint8)
        self.register_buffer("split_digest", digest)
        self.register_buffer("best_score", torch.tensor([-1.0]))  # so that the first evaluation is saved in any case
        self._refuse_unsuitable(self.config.head)
        self.facts: dict[str, Any] = {}  # what is known about the head, for head.json
        self._taken_from: tuple[Path, set[str]] | None = None  # checkpoint of its head, and the models that it reads
        self.head = self._make_head(upstream_dim, self.config.head)
        self.training_features = self._fit_later(lists["train"])
        self.register_load_state_dict_pre_hook(_check_splits)

    @property
    def splits_sha256(self) -> str:
        """SHA-256 of the split lists."""
        return str(self.splits["sha256"])

    # -- heads -----------------------------------------------------------------------------------------------------

    def _refuse_unsuitable(self, head: Esc50HeadConfig) -> None:
        """Refuse combinations of head and mode that cannot mean anything."""
        training = self.args.mode == "train"
        if training and head.kind == "audioset":
            raise UsageError("head.kind: audioset has nothing to train: use -m evaluate, or head.kind: linear.")
        if training and head.kind == "linear" and head.fit == "convex":
            if getattr(self.args, "upstream_trainable", False):
                raise UsageError("head.fit: convex needs a frozen upstream: set head.fit: sgd to train both.")
            if head.ckpt is not None:
                raise UsageError("head.ckpt is a fitted head: evaluate with it (-m evaluate), or set head.fit: sgd.")
            if dist.is_initialized():
                raise UsageError("head.fit: convex sees the clips of one process only: run without torchrun, or sgd.")
        if not training and head.kind == "linear" and head.ckpt is None and not self._resumed:
            raise UsageError(
                "the head of -d esc50 is untrained: give a run's checkpoint with -e, or put a head fitted on the "
                "unmerged upstream onto this one: -o \"config.downstream_expert.head.ckpt='exp/base/dev-best.ckpt'\"."
            )

    @property
    def _resumed(self) -> bool:
        return bool(getattr(self.args, "init_ckpt", None))

    def _make_head(self, width: int, config: Esc50HeadConfig) -> nn.Linear | AudioSetHead:
        """Return the head; write down what is known about it."""
        evaluating = self.args.mode != "train"
        if config.kind == "audioset":
            ckpt = tuned_beats(config.ckpt, self.args)
            head = AudioSetHead(find_file(ckpt), config.class_map or default_class_map())
            if head.predictor.in_features != width:
                raise DataError(f"the classifier in {ckpt} does not fit features of width {width}: another model.")
            self.facts = {"protocol": "audioset class map", "zero_shot": True, "ckpt": ckpt}
            return head
        linear = nn.Linear(width, len(CLASSES))
        unmerged = "fitted on the frozen unmerged upstream"
        if self._resumed and getattr(self.args, UNMERGED, False):  # a sweep, which refuses other heads
            self.facts = {"protocol": unmerged, "zero_shot": True, "ckpt": self.args.init_ckpt}
            return linear
        if config.ckpt is None or self._resumed:
            self.facts = {"protocol": "fitted on this upstream's features", "zero_shot": False, "fit": config.fit}
            return linear
        origin, models = take_head(config.ckpt, linear, self.split_digest, self.args)
        self._taken_from = config.ckpt, models
        frozen = not origin["upstream_merged"] and not origin["upstream_trained"]
        protocol = unmerged if frozen else "fitted on merged or tuned features"
        self.facts = {"protocol": protocol, "zero_shot": evaluating and frozen, **origin}
        return linear

    def decisive(self) -> dict[str, Any]:
        """Return what decides the classes besides the weights, as plain values; a sweep asks for it."""
        return {"labels of each class": self.head.rows if isinstance(self.head, AudioSetHead) else None}

    def check_upstream(self, target_sha256: str) -> None:
        """Refuse a head of ``head.ckpt`` that was fitted on another model; the Runner calls it.

        Args:
            target_sha256: hash of the present upstream without what is merged in.
        """
        if self._taken_from is not None:
            check_belongs(*self._taken_from, target_sha256)

    def _fit_later(self, names: list[str]) -> TrainingFeatures | None:
        head = self.config.head
        convex = self.args.mode == "train" and head.kind == "linear" and head.fit == "convex"
        return TrainingFeatures(names) if convex else None

    def _fit(self, dev: tuple[Tensor, Tensor]) -> None:
        """Replace the head by the convex fit; the penalty is chosen on dev."""
        assert self.training_features is not None and isinstance(self.head, nn.Linear)
        (weight, bias), accuracies = choose_linear(self.training_features.collected(), dev, self.config.head.l2)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)
        best = max(accuracies, key=lambda l2: accuracies[l2])
        self.facts |= {"l2": best, "dev_accuracy_by_l2": {f"{l2:g}": value for l2, value in accuracies.items()}}
        logger.info("head fitted: l2 %g, dev accuracy %.4f", best, accuracies[best])

    # -- s3prl's interface -----------------------------------------------------------------------------------------

    def get_dataloader(self, split: str, epoch: int = 0) -> DataLoader:
        """Return the loader of ``train``, ``dev`` or ``test``."""
        if split not in self.datasets:
            raise NotImplementedError(split)
        dataset, training = self.datasets[split], split == "train"
        sampler: DistributedSampler | None = None
        if training and dist.is_initialized():
            sampler = DistributedSampler(dataset)
            sampler.set_epoch(epoch)
        return DataLoader(
            dataset,
            batch_size=self.config.datarc.train_batch_size if training else self.config.datarc.eval_batch_size,
            shuffle=training and sampler is None,
            sampler=sampler,
            num_workers=self.config.datarc.num_workers,
            collate_fn=dataset.collate_fn,
        )

    def forward(
        self,
        split: str,
        features: list[Tensor],
        targets: list[int],
        names: list[str],
        records: dict[str, list],
        **kwargs: Any,
    ) -> Tensor:
        """Return the cross entropy of a batch and append its results to `records`.

        Args:
            features: one [steps, width] per clip; they are averaged over time.
            targets, names: classes and names of the clips.
        """
        pooled = torch.stack([feature.float().mean(0) for feature in features])
        if self.training_features is not None:
            if split == "train":
                if pooled.requires_grad:
                    raise UsageError(
                        "head.fit: convex needs features that stay as they are, but the upstream, its lambda or the "
                        "weights of its layers train: set tuning.method: frozen, or head.fit: sgd."
                    )
                self.training_features.add(names, pooled, targets)
            else:
                records["pooled"] += pooled.cpu()
        scores = self.head(pooled)
        losses = F.cross_entropy(scores, torch.tensor(targets, device=scores.device), reduction="none")
        records["loss"] += losses.tolist()
        records["prediction"] += scores.argmax(1).tolist()
        records["target"] += targets
        records["clip"] += names
        return losses.mean()

    def log_records(
        self, split: str, records: dict[str, list], logger: Any, global_step: int, **kwargs: Any
    ) -> list[str]:
        """Log accuracy, error (%) with its 95 % interval, and loss.

        Return ``dev-best.ckpt`` where dev is at its best.
        """
        if self.training_features is not None and split != "train":
            self._score_fitted(split, records)
        right = [float(a == b) for a, b in zip(records["prediction"], records["target"])]
        accuracy = sum(right) / len(right)
        values = {"acc": accuracy, "error": 100 * (1 - accuracy), "loss": sum(records["loss"]) / len(right)}
        if split != "train":
            low, high = wilson(1 - accuracy, len(right))
            values |= {"error_low": 100 * low, "error_high": 100 * high}
            self._write(split, records)
        for name, value in values.items():
            logger.add_scalar(f"esc50/{split}-{name}", value, global_step=global_step)
        score = torch.full_like(self.best_score, accuracy)  # rounded as the best one is, so that equals stay equal
        if split != "dev" or bool(score <= self.best_score):
            return []
        self.best_score = score
        return ["dev-best.ckpt"]

    def _score_fitted(self, split: str, records: dict[str, list]) -> None:
        """Fit the head when dev is scored; replace loss and predictions of `records` by those of the fitted head."""
        pooled, targets = torch.stack(records["pooled"]), torch.tensor(records["target"])
        if split == "dev":
            self._fit((pooled, targets))
        elif "l2" not in self.facts:
            raise UsageError("head.fit: convex chooses its penalty on dev: let runner.eval_dataloaders begin with dev.")
        with torch.no_grad():
            scores = self.head(pooled.to(self.split_digest.device)).cpu()
        records["loss"] = F.cross_entropy(scores, targets, reduction="none").tolist()
        records["prediction"] = scores.argmax(1).tolist()

    def _write(self, split: str, records: dict[str, list]) -> None:
        """Write predictions, split lists and what is known about the head into the run's folder."""
        rows = [
            Prediction(clip, CLASSES[target], CLASSES[found])
            for clip, target, found in zip(records["clip"], records["target"], records["prediction"])
        ]
        write_predictions(self.expdir / f"predictions-{split}.jsonl", sorted(rows, key=lambda row: row.clip))
        write_json(self.expdir / "splits.json", self.splits)
        write_json(self.expdir / "head.json", self.facts)

    def _folds(self) -> dict[str, int]:
        if self.config.split != "folds":
            return {}
        return {"test_fold": self.config.fold, "dev_fold": dev_fold(self.config.fold)}


def _check_splits(expert: DownstreamExpert, state: dict[str, Tensor], *_: Any) -> None:
    """Refuse to resume from a checkpoint that was trained on another split."""
    stored = state.get("split_digest")
    if stored is not None and not torch.equal(stored.cpu(), expert.split_digest.cpu()):
        raise DataError(
            "the checkpoint was trained on another split of ESC-50 (another fold or other clips): its training clips "
            "may be among the present test clips; keep downstream_expert.fold and .split, or train anew."
        )
