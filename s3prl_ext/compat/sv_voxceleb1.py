"""Speaker verification: on any device, with a dev list of its own, and without files in s3prl's package.

The speakers of that list are not trained on.

The lengths of all clips with silence cut out decide what is trained on. They take hours for VoxCeleb1 and are kept per
corpus.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from s3prl_ext.compat import sox
from s3prl_ext.compat.shim import Shim, absent, stub_module
from s3prl_ext.compat.voxceleb1 import cache_base
from s3prl_ext.corpora.listing import listed
from s3prl_ext.errors import DataError
from s3prl_ext.progress import bar
from s3prl_ext.reading import parse_json, read_lines
from s3prl_ext.tasks.asv import equal_error_rate
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)

SUFFIXES = (".wav", ".flac")
FEW = 2000  # clips whose lengths are found in this process
CONTEXT = 14  # frames that s3prl's x-vector uses up

LENGTHS = 2  # version of the stored lengths: another where what is cut changes


def check_trials(root: Path, trials: Path) -> None:
    """Check a list of trials, each line and its clips.

    Raises:
        DataError: naming the first wrong line or missing clip, or saying which kind of trial is missing.
    """
    if not root.is_dir():
        raise DataError(
            f"no such VoxCeleb1 folder: {root}; set VOXCELEB1, or config.downstream_expert.datarc.file_path with -o."
        )
    if not trials.is_file():
        raise DataError(
            f"no such list of trials: {trials}; that of VoxCeleb1-O is veri_test2.txt (voxceleb1_test_v2.txt): point "
            "VOXCELEB1_TRIALS at it, or leave datarc.dev_meta_data null."
        )
    kinds, names = set(), set()
    for number, line in enumerate(read_lines(trials), start=1):
        fields = line.split()
        if len(fields) != 3 or fields[0] not in ("0", "1"):
            raise DataError(f"{trials}, line {number} must be '<0|1> CLIP CLIP', got {line!r:.80}: correct the list.")
        kinds.add(fields[0])
        names |= {fields[1], fields[2]}
    missing = next((name for name in sorted(names) if not (root / name).is_file()), None)
    if missing is not None:
        raise DataError(f"{trials} lists {missing}, which is not below {root}: complete the corpus.")
    if len(kinds) < 2:
        raise DataError(f"{trials} needs trials of one speaker (1) and of two (0) for an equal error rate.")


def clip_lengths(root: Path) -> dict[str, int]:
    """Return the samples of every clip below a folder without its silence, from the cache where it has them.

    The clips are in the order of their names, whichever of them the cache has.

    Raises:
        DataError: the folder has no clip, or one is unreadable, or the cache cannot be written.
    """
    clips = sorted(path.relative_to(root).as_posix() for path in listed(root, "**/*") if path.suffix in SUFFIXES)
    if not clips:
        raise DataError(f"{root} has no clip SPEAKER/VIDEO/NUMBER.wav: complete VoxCeleb1, or set VOXCELEB1.")
    key = hashlib.sha256(f"{LENGTHS}|{root.resolve()}".encode()).hexdigest()[:24]
    cache = cache_base() / "sv_voxceleb1" / f"{key}.json"
    stats = {name: (root / name).stat() for name in clips}
    marks = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    known = _known(cache, marks)
    rest = [name for name in clips if name not in known]
    found_now = dict(zip(rest, _measured([root / name for name in rest]), strict=True)) if rest else {}
    lengths = {name: known[name] if name in known else found_now[name] for name in clips}
    if not rest:
        return lengths
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, {name: [*marks[name], lengths[name]] for name in clips})
    except OSError as error:
        raise DataError(f"cannot write the lengths of VoxCeleb1's clips to {cache}: set XDG_CACHE_HOME.") from error
    return lengths


def _known(cache: Path, marks: Mapping[str, list[int]]) -> dict[str, int]:
    """Return the stored lengths of the clips that still have the size and the time that they had."""
    try:
        stored = parse_json(cache.read_text(encoding="utf-8"))
        return {name: int(row[2]) for name, row in stored.items() if row[:2] == marks.get(name)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return {}


def _measured(paths: list[Path]) -> Iterable[int]:
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(paths) < FEW or workers == 1:
        return list(map(_length, bar(paths, desc="lengths", total=len(paths))))
    with ProcessPoolExecutor(workers) as pool:
        return list(bar(pool.map(_length, paths, chunksize=64), desc="lengths", total=len(paths)))


def _length(path: Path) -> int:
    from s3prl.downstream.sv_voxceleb1.dataset import EFFECTS

    return int(sox.apply_effects_file(path, EFFECTS)[0].shape[1])


def _wrap_datasets(module: ModuleType) -> None:
    def train(self: Any, vad_config: Any, key_list: Any, file_path: Any, meta_data: Any, max_timestep: Any = None,
              n_jobs: int = 12) -> None:  # fmt: skip
        self.roots, self.root_key, self.max_timestep, self.vad_c = file_path, key_list, max_timestep, vad_config
        self.dataset, speakers = [], set()
        for root in map(Path, file_path):
            if not root.is_dir():
                raise DataError(f"no such folder: {root}; set VOXCELEB1 to the folder that holds dev/wav/.")
            for name, length in clip_lengths(root).items():
                speakers.add(name.partition("/")[0])
                if length > vad_config["min_sec"]:
                    self.dataset.append(str(root / name))
        if not self.dataset:
            raise DataError(
                f"no clip below {', '.join(map(str, file_path))} is longer than {vad_config['min_sec']} samples once "
                "its silence is cut out: check the corpus, or lower datarc.vad_config.min_sec."
            )
        self.all_speakers = sorted(speakers)
        self.speaker_num = len(self.all_speakers)

    initialise = module.SpeakerVerifi_test.__init__

    @functools.wraps(initialise)
    def test(self: Any, vad_config: Any, file_path: Any, meta_data: Any) -> None:
        if meta_data is None:
            self.necessary_dict = {"spk_paths": [], "total_spk_num": None, "pair_table": []}
            self.root, self.meta_data, self.vad_c, self.dataset, self.pair_table = file_path, None, vad_config, [], []
            return
        check_trials(Path(file_path), Path(meta_data))
        initialise(self, vad_config, file_path, meta_data)
        self.dataset.sort()  # s3prl takes them out of a set

    # the same silence is cut from all clips, whatever torchaudio has
    module.apply_effects_file = sox.apply_effects_file
    module.SpeakerVerifi_train.__init__ = train
    module.SpeakerVerifi_test.__init__ = test


def _hold_out(trained: Any, dev: Any) -> None:
    """Take all clips of the speakers in dev trials out of the training set; each speaker keeps an output."""
    root = Path(dev.root)
    speakers = {Path(name).relative_to(root).parts[0] for _, *pair in dev.pair_table for name in pair}
    if not speakers:
        return
    kept = [clip for clip in trained.dataset if Path(clip).relative_to(root).parts[0] not in speakers]
    logger.info(
        "the %d speakers of the dev trials are not trained on: %d of %d clips are left",
        len(speakers), len(kept), len(trained.dataset),
    )  # fmt: skip
    trained.dataset = kept


def _keep_dev_apart(module: ModuleType) -> None:
    initialise, get_dataloader = module.DownstreamExpert.__init__, module.DownstreamExpert.get_dataloader

    @functools.wraps(initialise)
    def initialise_and_hold_out(self: Any, *args: Any, **kwargs: Any) -> None:
        """Read the splits, and leave the speakers of dev out of training."""
        initialise(self, *args, **kwargs)
        _hold_out(self.train_dataset, self.dev_dataset)

    @functools.wraps(get_dataloader)
    def checked_dataloader(self: Any, mode: str, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of a split; training needs a speaker that dev has not."""
        if mode == "train" and not self.train_dataset.dataset:
            raise DataError(
                f"{self.datarc['dev_meta_data']} has trials of all speakers of dev/wav, and speakers of dev are not "
                "trained on: give datarc.dev_meta_data a list of trials of a few speakers, or null."
            )
        return get_dataloader(self, mode, *args, **kwargs)

    module.DownstreamExpert.__init__ = initialise_and_hold_out
    module.DownstreamExpert.get_dataloader = checked_dataloader


def _repair_expert(module: ModuleType) -> None:
    from torch import LongTensor, arange, nn, tensor
    from torch.nn.utils.rnn import pad_sequence

    log_records = module.DownstreamExpert.log_records

    def forward(
        self: Any, mode: str, features: Any, utter_idx: Any, labels: Any = None, records: Any = None, **kwargs: Any
    ) -> Any:
        """Return the loss of a batch, or store the embeddings of its clips; s3prl's own wants a CUDA device."""
        padded = self.connector(pad_sequence(features, batch_first=True))
        lost = CONTEXT if self.modelrc["module"] == "XVector" else 0
        frames = tensor([len(feature) - lost for feature in features], device=padded.device)
        if int(frames.min()) < 2:
            raise DataError(
                f"{utter_idx[int(frames.argmin())]} is too short for {self.modelrc['module']}: "
                f"{int(frames.min()) + lost} frames, at least {lost + 2} are needed; "
                "leave it out, or raise datarc.vad_config.min_sec."
            )
        mask = -100000.0 * (arange(int(frames.max()), device=padded.device) >= frames[:, None]).to(padded.dtype)
        if mode == "train":
            loss = self.objective(self.model(padded, mask), LongTensor(labels).to(padded.device))
            records["loss"].append(loss.item())
            return loss
        embeddings = nn.functional.normalize(self.model.inference(padded, mask), dim=-1)
        records.update(zip(utter_idx, embeddings.cpu().detach(), strict=True))
        return tensor(0)

    @functools.wraps(log_records)
    def log_trials(self: Any, mode: str, records: Any, logger: Any, global_step: int, **kwargs: Any) -> Any:
        """Score the trials of the split; s3prl takes those of test for dev too, and writes no labels."""
        if mode == "train":
            return log_records(self, mode, records, logger, global_step, **kwargs)
        tested = self.test_dataset
        scored = tested if mode == "test" else self.dev_dataset
        trials = [trial for trial in scored.pair_table if trial[1] in records and trial[2] in records]
        if len({label for label, *_ in trials}) < 2:  # of a part of the split (runner.evaluate_ratio)
            logger.add_scalar(f"sv-voxceleb1/{mode}-EER", math.nan, global_step=global_step)
            return []
        records["labels"] = [label for label, *_ in trials]
        self.test_dataset = SimpleNamespace(pair_table=trials)
        try:
            return log_records(self, mode, records, logger, global_step, **kwargs)
        finally:
            self.test_dataset = tested

    module.DownstreamExpert.forward = forward
    module.DownstreamExpert.log_records = log_trials
    module.EER = lambda labels, scores: (equal_error_rate(labels, scores),)


def _unused() -> Mapping[str, ModuleType]:
    """Return stand-ins for what the dataset imports: sox and librosa are not used, joblib in what is replaced."""
    parallel = stub_module("joblib.parallel", Parallel=None, delayed=None)
    util = stub_module("librosa.util", find_files=None)
    return {
        "sox": stub_module("sox", Transformer=None),
        "librosa": stub_module("librosa", util=util),
        "librosa.util": util,
        "joblib": stub_module("joblib", parallel=parallel),
        "joblib.parallel": parallel,
    }


def _no_roc() -> Mapping[str, ModuleType]:
    metrics = stub_module("sklearn.metrics", roc_curve=None, auc=None)
    return {"sklearn": stub_module("sklearn", metrics=metrics), "sklearn.metrics": metrics}


def _is_new(module: ModuleType) -> bool:
    return not hasattr(module.SpeakerVerifi_test.__init__, "__wrapped__")


SHIMS = (
    Shim(
        name="sv-voxceleb1-imports",
        module="s3prl.downstream.sv_voxceleb1.dataset",
        needed=lambda module: any(map(absent, ("sox", "librosa", "joblib"))),
        stubs=_unused,
        reason="speaker verification imports sox, librosa and joblib, which s3prl does not declare",
        remove_when="s3prl declares them or no longer imports them",
    ),
    Shim(
        name="sv-voxceleb1-roc",
        module="s3prl.downstream.sv_voxceleb1.utils",
        needed=lambda module: absent("sklearn"),
        stubs=_no_roc,
        reason="speaker verification imports scikit-learn, which s3prl does not declare, for its equal error rate",
        remove_when="s3prl declares scikit-learn",
    ),
    Shim(
        name="sv-voxceleb1-clips",
        module="s3prl.downstream.sv_voxceleb1.dataset",
        needed=_is_new,
        apply=_wrap_datasets,
        reason="s3prl keeps the lengths of one corpus inside its package and uses them for every other, and takes the "
        "clips of a trial list in an order that differs in every process",
        remove_when="s3prl keys its cache by corpus and sorts the clips",
    ),
    Shim(
        name="sv-voxceleb1-device",
        module="s3prl.downstream.sv_voxceleb1.expert",
        needed=lambda module: not hasattr(module.DownstreamExpert.log_records, "__wrapped__"),
        apply=_repair_expert,
        reason="speaker verification needs a CUDA device, scores dev with the trials of test, and writes no labels",
        remove_when="s3prl takes the device of the features and the trials of the split",
    ),
    Shim(
        name="sv-voxceleb1-dev",
        module="s3prl.downstream.sv_voxceleb1.expert",
        needed=lambda module: not hasattr(module.DownstreamExpert.get_dataloader, "__wrapped__"),
        apply=_keep_dev_apart,
        reason="speaker verification trains on the speakers of its dev trials",
        remove_when="s3prl leaves them out",
    ),
)
