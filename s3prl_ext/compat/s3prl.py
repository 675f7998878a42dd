"""s3prl itself: a patched ``isinstance``, files missing from its package, a shared file list, a changed config."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ext.compat import evaluated, pickles, voxceleb1
from s3prl_ext.compat.shim import Shim, absent
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.tasks import of_downstream

CTC_DIR = Path(__file__).resolve().parent / "ctc"


def keep_isinstance() -> None:
    """Leave the built-in ``isinstance`` alone; takes the place of s3prl's ``hack_isinstance``."""


def _neutralise_hack(module: ModuleType) -> None:
    module.hack_isinstance = keep_isinstance
    command = sys.modules.get("s3prl.run_downstream")
    if command is not None:
        command.hack_isinstance = keep_isinstance


def _add_corpus(module: ModuleType) -> None:
    module.__path__.append(str(CTC_DIR))


def _wrap_load_dataset(module: ModuleType) -> None:
    load_dataset = module.load_dataset

    @functools.wraps(load_dataset)
    def load_dataset_from_copy(split, tokenizer, corpus):
        return load_dataset(split, tokenizer, dict(corpus))

    module.load_dataset = load_dataset_from_copy


def _check_vocabulary(module: ModuleType) -> None:
    load_text_encoder = module.load_text_encoder

    @functools.wraps(load_text_encoder)
    def load_if_there(mode: str, vocab_file: str, slots_file: str | None = None) -> Any:
        if not Path(vocab_file).is_file():
            raise DataError(
                f"no such vocabulary: {vocab_file}; those of Common Voice are in s3prl's git repository, "
                "s3prl/downstream/ctc/cv_vocab: point COMMON_VOICE_VOCAB at that folder, or "
                "config.downstream_expert.text.vocab_file at your own."
            )
        return load_text_encoder(mode, vocab_file, slots_file)

    module.load_text_encoder = load_if_there


def _name_corpus(module: ModuleType) -> None:
    create_dataset = module.create_dataset

    @functools.wraps(create_dataset)
    def create_known(split: str, tokenizer: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return create_dataset(split, tokenizer, name, *args, **kwargs)
        except NotImplementedError as error:
            if error.args:
                raise
            corpora = (task.corpus for task in of_downstream("ctc") if task.corpus)
            known = [one for corpus in corpora for one in ([corpus] if isinstance(corpus, str) else corpus)]
            raise unknown_name("corpus", name, known, "downstream_expert.corpus.name") from error
        except ModuleNotFoundError as error:
            folder, _, file = (error.name or "").rpartition(".")
            if folder != "s3prl.downstream.ctc.corpus":
                raise
            raise UsageError(
                f"downstream_expert.corpus.name {name} needs downstream/ctc/corpus/{file}.py of s3prl's git "
                "repository, which its package on PyPI lacks: install s3prl from a clone of it, or take another corpus."
            ) from error

    module.create_dataset = create_known


def _leave_padding_out(module: ModuleType) -> None:
    pooled = module.AttentivePoolingModule.forward

    @functools.wraps(pooled)
    def pooled_without_padding(self: Any, batch_rep: Any, att_mask: Any) -> Any:
        weights = att_mask.to(batch_rep.dtype).masked_fill(~att_mask, float("-inf"))  # s3prl adds True or False
        return pooled(self, batch_rep, weights)

    module.AttentivePoolingModule.forward = pooled_without_padding


def _count_in_float32(module: ModuleType) -> None:
    count = module.calc_diarization_error

    @functools.wraps(count)
    def count_in_float32(pred: Any, *args: Any, **kwargs: Any) -> Any:
        return count(pred.float(), *args, **kwargs)

    module.calc_diarization_error = count_in_float32


SHIMS = (
    Shim(
        name="s3prl-diarization-bfloat16",
        module="s3prl.downstream.diarization.expert",
        needed=lambda module: not hasattr(module.calc_diarization_error, "__wrapped__"),
        apply=_count_in_float32,
        reason="s3prl makes a numpy array of the predictions, which stops with a TypeError in bf16",
        remove_when="s3prl counts the errors of predictions in any precision",
    ),
    Shim(
        name="s3prl-ctc-corpus-name",
        module="s3prl.downstream.ctc.data",
        needed=lambda module: not hasattr(module.create_dataset, "__wrapped__"),
        apply=_name_corpus,
        reason="s3prl stops without a word at a corpus that it does not know, and with a traceback at one of its own "
        "that its package on PyPI lacks",
        remove_when="s3prl names the corpora that it knows, and the folder ctc/corpus is in its package",
    ),
    Shim(
        name="s3prl-ctc-vocabulary",
        module="s3prl.downstream.ctc.expert",
        needed=lambda module: not hasattr(module.load_text_encoder, "__wrapped__"),
        apply=_check_vocabulary,
        reason="s3prl's package on PyPI lacks the vocabularies of Common Voice, and its error does not say where they "
        "are",
        remove_when="the folder cv_vocab is in s3prl's package",
    ),
    Shim(
        name="s3prl-attentive-pooling",
        module="s3prl.downstream.model",
        needed=lambda module: not hasattr(module.AttentivePoolingModule.forward, "__wrapped__"),
        apply=_leave_padding_out,
        reason="s3prl's AttentivePooling adds a mask of True and False to what goes into a softmax, so that padding "
        "has weight and what is pooled of a clip depends on the clips next to it",
        remove_when="s3prl masks padding there",
    ),
    Shim(
        name="s3prl-isinstance",
        module="s3prl.utility.helper",
        needed=lambda module: getattr(module, "hack_isinstance", keep_isinstance) is not keep_isinstance,
        apply=_neutralise_hack,
        reason="s3prl replaces the built-in isinstance, so that a defaultdict no longer counts as a dict, in every "
        "library of the process; torch has not needed it since 1.8",
        remove_when="s3prl no longer calls hack_isinstance",
    ),
    Shim(
        name="s3prl-ctc-corpus",
        module="s3prl.downstream.ctc",
        needed=lambda module: absent("s3prl.downstream.ctc.corpus"),
        apply=_add_corpus,
        reason="phoneme recognition and slot filling need ctc/corpus/, which s3prl's package on PyPI lacks",
        remove_when="the folder is in s3prl's package",
    ),
    Shim(
        name="s3prl-ctc-workers",
        module="s3prl.downstream.ctc.expert",
        needed=lambda module: not hasattr(module.load_dataset, "__wrapped__"),
        apply=_wrap_load_dataset,
        reason="s3prl takes num_workers out of the shared configuration, so every later DataLoader has 12 workers",
        remove_when="s3prl copies the configuration in ctc/data.py",
    ),
    Shim(
        name="s3prl-voxceleb1-cache",
        module="s3prl.downstream.voxceleb1.dataset",
        needed=lambda module: not hasattr(module.SpeakerClassifiDataset.__init__, "__wrapped__"),
        apply=voxceleb1.wrap_dataset,
        reason="s3prl keeps one file list inside its package and uses it again for every corpus, and stops with "
        "IndexError at a missing file",
        remove_when="s3prl keys its cache by corpus and names the missing file",
    ),
    Shim(
        name="s3prl-eval",
        module="s3prl",
        needed=lambda module: True,
        apply=evaluated.restrict_all,
        reason="s3prl runs text of task files, checkpoints and models as Python where it expects the name of a class "
        "or a list of layers",
        remove_when="s3prl looks names up instead of calling eval",
    ),
    *(
        Shim(
            name=f"s3prl-{name.split('.')[2]}-pickle",
            module=name,
            needed=pickles.is_trusting,
            apply=pickles.distrust,
            reason="s3prl loads these models with weights_only=False, which runs code that a file holds",
            remove_when="s3prl loads them with weights_only=True",
        )
        for name in pickles.MODULES
    ),
)
