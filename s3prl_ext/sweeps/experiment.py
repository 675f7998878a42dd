"""Build the models of a sweep once: the unmerged target, featurizer and task with a head that needs no training."""

from __future__ import annotations

import argparse
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any, cast

import torch
from s3prl.downstream.runner import ModelEntry
from torch import nn

from s3prl_ext import randomness
from s3prl_ext.attention.weights import AttentionWeights, extract, sha256
from s3prl_ext.configs import load_yaml
from s3prl_ext.downstreams.recognition.merged_decoder import UNMERGED
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.merging.config import MergeConfig
from s3prl_ext.run_checks import check_same_command, refuse_untrained_head
from s3prl_ext.run_flags import default_task_file, literals, overrides_of, preset_path
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training.batching.extractor_cache import extractor_of
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.training.devices import check_device
from s3prl_ext.training.known_settings import check_overrides, known_tasks
from s3prl_ext.training.run_spec import UPSTREAM_ARGUMENTS
from s3prl_ext.training.runner import Runner
from s3prl_ext.upstreams.merged_attention.decoder import decoder_attention
from s3prl_ext.upstreams.merged_attention.models import build_target, read_decoder, target_name

logger = logging.getLogger(__name__)

# Arguments of run_downstream.py that tasks and Runner read; a checkpoint given by -e replaces all but DECIDED_NOW.
DEFAULTS: dict[str, Any] = {
    "mode": "evaluate", "evaluate_split": "test", "override": None, "backend": "gloo", "local_rank": None,
    "past_exp": None, "init_ckpt": None, "config": None, "downstream": None, "downstream_variant": None, "hub": "torch",
    "upstream": None, "upstream_ckpt": None, "upstream_model_config": None, "upstream_refresh": False,
    "upstream_trainable": False, "upstream_feature_selection": "hidden_states", "upstream_layer_selection": None,
    "upstream_feature_normalize": False, "upstream_model_name": "model.pt", "upstream_revision": None, "expname": None,
    "expdir": None, "auto_resume": False, "push_to_hf_hub": False, "hf_hub_org": None, "seed": 1337, "device": "cpu",
    "cache_dir": None, "verbose": False, "disable_cudnn": False, UNMERGED: True,
}  # fmt: skip
DECIDED_NOW = {
    "mode",
    "evaluate_split",
    "override",
    "backend",
    "local_rank",
    "past_exp",
    "init_ckpt",
    "expdir",
    "device",
    UNMERGED,
}
UNTRAINED = (
    "and a sweep would score chance: train it on the unmerged target first, and give its checkpoint with -e (or -i)."
)


class SweepRunner(Runner):
    """The Runner with the unmerged target as its upstream, frozen; heads of unmerged upstreams only.

    Args:
        args: as :func:`experiment_args` makes them.
        config: the task file.
        merge: names the target.
    """

    def __init__(self, args: Namespace, config: dict[str, Any], merge: MergeConfig) -> None:
        self._merge = merge
        super().__init__(args, config)

    def _open_cache(self) -> None:
        """Refuse an upstream without an extractor; the cache is opened later, by :meth:`open_cache`."""
        if self.runner_config.cache == "extractor":
            extractor_of(self.upstream.model)

    def open_cache(self) -> None:
        """Open the cache of what no arm changes: the extractor, and the features where the task's decoder is merged.

        Call it after layers, alignment and bases are chosen: paired inputs pass the same upstream, and are not clips of
        the task. Features of a merged upstream are not kept, because each arm has its own.
        """
        if self.runner_config.cache == "extractor":
            self._keep_extractor_output()
        elif self._merge.target.prefix:
            self.cache = super()._open_cache()
        elif self.runner_config.cache is not None:
            logger.warning(
                "runner.cache: features is ignored: each arm has features of its own (extractor keeps what all share)."
            )

    @property
    def target_attention(self) -> AttentionWeights:
        """The parameters that arms are written to, as views: of the upstream, or of the decoder in the task's head."""
        if self._merge.target.prefix:
            return decoder_attention(self.downstream.model)
        return extract(self.upstream.model.state_dict(), f"target {target_name(self._merge.target)}")

    @property
    def stored_config(self) -> dict[str, Any]:
        """The task file with variables in place of paths."""
        return self._variables.restored(self.config)

    def _get_upstream(self) -> ModelEntry:
        model = build_target(self._merge.target).to(self.args.device)
        return self._init_model(model, "Upstream", False, ["get_downsample_rates"])

    def _prepare_upstream(self, model: nn.Module, trainable: bool) -> bool:
        self._check_head(model)
        super()._prepare_upstream(model, trainable)
        return False

    def _check_head(self, upstream: nn.Module) -> None:
        """Refuse a head that was trained on another target or on a merged one."""
        if not self.resumed:  # the task has a head of its own, see experiment_args
            return
        if self.resumed.upstream or self.resumed.changes is not None:
            raise DataError(
                f"{self.args.init_ckpt} holds a tuned upstream, and a sweep needs a head that was trained on the "
                "target as it is (method frozen or weighted_sum); or write the tuned one with s3prl-ext export, and "
                "give it as target and its head.ckpt with -i."
            )
        stored = self.resumed.extension.merge
        if not isinstance(stored, dict) or not stored:
            logger.info("%s does not say what its head was trained on; it must be this target", self.args.init_ckpt)
            return
        merged = any(value for source in stored["sources"] for row in source["lambda"].values() for value in row)
        if merged or stored.get("learnable"):
            raise DataError(
                f"the head in {self.args.init_ckpt} was trained on a merged upstream: a sweep needs one trained on the "
                "unmerged target (-g ...,,lambda=0)."
            )
        name = target_name(self._merge.target)
        target = self._merge.target
        attention = read_decoder(target) if target.prefix else extract(upstream.state_dict(), name)
        was, now = stored["target"]["attention_sha256"], sha256(attention)
        if was != now:
            raise DataError(
                f"the head in {self.args.init_ckpt} was trained on another target, '{stored['target']['name']}' "
                f"(attention {was[:12]}), but now it is '{name}' (attention {now[:12]})."
            )
        upstream.merge_record = cast(Any, stored)  # lambda 0 of this target is this target


def experiment_args(flags: argparse.Namespace) -> tuple[Namespace, dict[str, Any]]:
    """Return the arguments and the task file of the experiment that the flags of ``s3prl-ext sweep`` describe.

    Raises:
        UsageError: a flag is missing or names nothing that is there.
        DataError: the checkpoint is unreadable.
    """
    given = {key: value for key, value in vars(flags).items() if key in DEFAULTS and value is not None}
    device = flags.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    if flags.past_exp and flags.init_ckpt:
        raise UsageError("-e takes head and task from one checkpoint, -i the head alone: give one of the two.")
    values = DEFAULTS | given | {"device": device, "expdir": str(flags.expdir)}
    config: dict[str, Any] | None = None
    ckpt = flags.past_exp or flags.init_ckpt
    if ckpt:
        resumed = Checkpoint.read(_checkpoint(Path(ckpt), "-e" if flags.past_exp else "-i"))
        kept = {key: value for key, value in resumed.arguments.items() if key not in DECIDED_NOW}
        if flags.past_exp:
            _check_given(resumed, flags)
            values |= kept
            config = resumed.config
        else:  # the checks of a checkpoint compare its upstream, the target is built from the merge
            values |= {key: kept[key] for key in UPSTREAM_ARGUMENTS if key in kept}
        values["init_ckpt"] = str(resumed.path)
        values["upstream_trainable"] = False
    if config is None:
        config = load_yaml(_task_file(flags))
    if not ckpt:
        if values["downstream"] not in known_tasks():
            raise unknown_name("task (-d)", values["downstream"], known_tasks())
        refuse_untrained_head(values["downstream"], config, UNTRAINED)
    args = Namespace(**values)
    if overrides := overrides_of(flags.override):
        from s3prl.utility.helper import override

        for remark in check_overrides(overrides, config, values["downstream"]):
            logger.warning("%s", remark)
        override(literals(flags.override), args, config)
        check_device(str(args.device))
    return args, config


def _check_given(ckpt: Checkpoint, flags: argparse.Namespace) -> None:
    """Refuse flags that say something else of the task, features and seed than the checkpoint of ``-e``.

    The flags of the upstream name the merge, whose target is compared with the head's when it is built.
    """
    given = argparse.Namespace(**{name: value for name, value in vars(flags).items() if name not in UPSTREAM_ARGUMENTS})
    check_same_command(ckpt, given, overrides_of(flags.override), begins_too=False)


def _checkpoint(path: Path, flag: str) -> Path:
    found = path if path.is_file() else RunFolder(path).latest()
    if found is None:
        raise UsageError(f"{flag} {path}: no such checkpoint.")
    return found


def _task_file(flags: argparse.Namespace) -> Path:
    if flags.downstream is None:
        raise UsageError("-d is missing: name the task, or a checkpoint of it with -e.")
    if flags.config is not None:
        return Path(flags.config) if Path(flags.config).is_file() else preset_path(flags.config)
    default = default_task_file(flags.downstream)
    if default is not None:
        return default
    raise UsageError(f"-c is missing: name the task file of -d {flags.downstream}, such as ljspeech/mini or my.yaml.")


def build(args: Namespace, config: dict[str, Any], merge: MergeConfig) -> SweepRunner:
    """Return the models of an experiment, built as ``run_downstream.py`` does: from one seed."""
    folder = Path(args.expdir)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    randomness.seed_all(args.seed)
    try:
        return SweepRunner(args, config, merge)
    except Exception:
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a sweep that did not come to be."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
