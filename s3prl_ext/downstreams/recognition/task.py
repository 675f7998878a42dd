"""The expert behind ``-d ljspeech``, ``vctk`` and ``librispeech_zeroshot``.

Transcripts, word and character error rates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed import is_initialized
from torch.utils.data import DataLoader, DistributedSampler

from s3prl_ext.corpora.audio import length_of, read_audio
from s3prl_ext.corpora.pairs import CORPORA, corpus_of, training_utterances
from s3prl_ext.corpora.splits import SPLITS, split_hash
from s3prl_ext.corpora.transcribed import SPLIT_FILE, TranscribedCorpus, Utterance
from s3prl_ext.downstreams.recognition.config import parse
from s3prl_ext.downstreams.recognition.dataset import RecognitionDataset, collate
from s3prl_ext.downstreams.recognition.head import (
    CtcHead,
    FrameCounter,
    check_features,
    read_target_head,
    target_folder,
)
from s3prl_ext.downstreams.recognition.merged_decoder import apply_merge
from s3prl_ext.downstreams.recognition.recognizers import CtcRecognizer
from s3prl_ext.downstreams.recognition.whisper_head import WhisperRecognizer, read_whisper
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.decoding import character_vocabulary
from s3prl_ext.evaluation.significance import bootstrap_ratio
from s3prl_ext.evaluation.text_rules import text_rule
from s3prl_ext.evaluation.transcripts import ScoredTranscript, transcript, write_transcripts
from s3prl_ext.model_settings import model_config
from s3prl_ext.reading import parse_json
from s3prl_ext.upstreams.whisper.encoder import MODEL_TYPE
from s3prl_ext.writing import write_json, write_text

logger = logging.getLogger(__name__)


class RecognitionTask(nn.Module):
    """A speech recognition task with s3prl's expert interface.

    With ``head.init: target`` it transcribes without any training: the head and vocabulary are those of the upstream's
    target, transcripts of the unmerged target are the ones of transformers' CTC classes. A checkpoint's head replaces
    it.

    Args:
        upstream_dim: width of the features.
        upstream_rate: samples per frame.
        downstream_expert: sections ``datarc`` and ``head``, see :mod:`s3prl_ext.downstreams.recognition.config`.
        expdir: folder for split lists and transcripts.
        kwargs: the arguments of ``run_downstream.py`` and the other sections of the task file.

    Raises:
        UsageError: wrong keys or values, no model for the head, or a new head that shall be scored untrained.
        DataError: corpus or head are missing, incomplete or do not fit.
    """

    name: ClassVar[str]
    corpus: ClassVar[TranscribedCorpus]
    best_score: Tensor

    def __init__(
        self, upstream_dim: int, upstream_rate: int, downstream_expert: dict[str, Any], expdir: str, **kwargs: Any
    ) -> None:
        super().__init__()
        self.data, self.head_config = parse(downstream_expert)
        self.rule = text_rule(self.data.text_rule)
        self.expdir = Path(expdir)
        self.recognizer = self._make_recognizer(upstream_dim, kwargs)
        apply_merge(self.recognizer, kwargs)
        self.head = self.recognizer.head
        self.register_buffer("best_score", torch.full((1,), torch.inf))
        self._scores_all = float((kwargs.get("runner") or {}).get("evaluate_ratio", 1)) >= 1
        self._utterances: dict[str, list[Utterance]] = {}
        self._lists: dict[str, list[str]] = {}
        if kwargs.get("mode") != "inference":
            self._read_corpus(kwargs.get("mode"))

    def _make_recognizer(self, width: int, args: dict[str, Any]) -> CtcRecognizer | WhisperRecognizer:
        if self.head_config.init == "target":
            folder = target_folder(self.head_config.ckpt, args)
            check_features(args)
            if model_config(folder).get("model_type") == MODEL_TYPE:
                return read_whisper(folder, width, self.head_config)
            return CtcRecognizer(*read_target_head(folder, width))
        if args.get("mode") == "evaluate" and not args.get("init_ckpt"):
            raise UsageError(
                "head.init 'fresh' is an untrained head: evaluate a checkpoint with -e, or use head.init 'target'."
            )
        vocabulary = character_vocabulary(self.rule.alphabet)
        return CtcRecognizer(CtcHead(width, len(vocabulary), self.head_config.recurrent), vocabulary, FrameCounter())

    @property
    def decoder(self) -> nn.Module | None:
        """The decoder of a Whisper that the task transcribes with, None with a CTC head."""
        return self.head if isinstance(self.recognizer, WhisperRecognizer) else None

    def decisive(self) -> dict[str, Any]:
        """Return what decides transcripts besides the weights, as plain values; a sweep asks for it."""
        return self.recognizer.decisive()

    def _read_corpus(self, mode: str | None) -> None:
        utterances = self.corpus.utterances(Path(self.data.path), self.data.on_missing, self.data.split)
        needed = SPLITS if mode == "train" else ()  # a corpus that is only scored needs no train
        lists = self.corpus.splits(utterances, self.data.split, needed)
        by_id = {utterance.id: utterance for utterance in utterances}
        self._utterances = {split: [by_id[id] for id in ids] for split, ids in lists.items()}
        self._lists = lists

    # -- paired inputs of a merge ----------------------------------------------------------------------------------

    def split_of_pairs(self, file: str) -> str | None:
        """Return the rule that divides a folder of the task's own corpus as the task does, None for other pairs."""
        own = corpus_of(Path(file).expanduser()) is self.corpus
        return self.data.split if own and isinstance(self.data.split, str) else None

    def check_pairs(self, file: str, split: str | None) -> None:
        """Refuse a merge that was decided with clips that the task scores; of a folder that has moved, warn.

        Args:
            file: table or folder that its pairs were drawn from; a table's rows are the user's own choice.
            split: rule or file by which they are the training clips of a folder, None for the corpus's own.

        Raises:
            UsageError: among these are clips of another split of the task.
        """
        folder = Path(file).expanduser()
        if not self._lists or self.corpus not in CORPORA:
            return
        if not folder.exists():
            self._warn_of_lost_pairs(file, split)
        elif corpus_of(folder) is self.corpus:
            scored = self._scored_among(training_utterances(folder, self.corpus, split))
            if scored:
                raise UsageError(
                    f"the merge is decided by pairs of {file} that split {split or self.corpus.group} calls train, of "
                    f"which the task scores {scored}."
                )

    def _warn_of_lost_pairs(self, file: str, split: str | None) -> None:
        """Warn of pairs that are gone, if they would be clips that the task scores had they been of its corpus."""
        try:
            train = training_utterances(Path(self.data.path), self.corpus, split, self.data.on_missing)
        except (UsageError, DataError):
            if split is None or Path(split).is_file() or not split.endswith(".json"):
                return  # the rule or lists of another corpus
            scored = f"perhaps some of them, as the lists {split} are not there either: compare the layers anew"
        else:
            scored = self._scored_among(train)
        if scored:
            logger.warning(
                "the merge is decided by pairs of %s, which is not there; if that was a folder of %s, the task scores "
                "%s", file, self.corpus.card.name, scored,
            )  # fmt: skip

    def _scored_among(self, drawn: Sequence[Utterance]) -> str:
        """Return how many of the clips the task scores, and what to do about it; empty for none."""
        scored = {id for name, ids in self._lists.items() if name != "train" for id in ids}
        if not (both := len({utterance.id for utterance in drawn} & scored)):
            return ""
        rule = self.data.split if isinstance(self.data.split, str) else None
        advice = f"give the pairs split: {rule}" if rule else "give a table of the task's training clips as pairs"
        return f"{both:,} in {' or '.join(name for name in self._lists if name != 'train')}: {advice}"

    # -- interface of s3prl ----------------------------------------------------------------------------------------

    def get_dataloader(self, split: str, epoch: int = 0) -> DataLoader:
        """Return the DataLoader of ``train``, ``dev``, ``test`` or another split of the task file.

        Raises:
            KeyError: there is no such split.
            DataError: it is empty.
        """
        if not self._utterances[split]:
            rule = self.data.split
            why = f"by {rule}" if isinstance(rule, str) else f"{self.data.path} has nothing of {', '.join(rule[split])}"
            raise DataError(f"the split '{split}' of {self.corpus.card.name} is empty: {why}.")
        train = split == "train"
        utterances = self._utterances[split] if train else self._by_length(self._utterances[split])
        dataset = RecognitionDataset(utterances, self.rule.apply, self.recognizer.pad)
        self._write_splits()
        sampler: DistributedSampler | None = None
        if train:
            self._warn_of_unknown_characters(dataset)
            if is_initialized():
                sampler = DistributedSampler(dataset)
                sampler.set_epoch(epoch)
        return DataLoader(
            dataset,
            batch_size=self.data.train_batch_size if train else self.data.eval_batch_size,
            shuffle=train and sampler is None,
            sampler=sampler,
            num_workers=self.data.num_workers,
            collate_fn=collate,
        )

    def forward(
        self,
        split: str,
        features: Sequence[Tensor],
        texts: Sequence[str],
        samples: Sequence[int],
        ids: Sequence[str],
        records: dict[str, list],
        **kwargs: Any,
    ) -> Tensor:
        """Return the loss of a batch; record loss, ids, references and hypotheses.

        Args:
            features: one matrix [frames, width] per clip.
            texts: references, after the text rule.
            samples: length of each clip at 16 kHz.
        """
        loss, decoded = self.recognizer.recognize(features, texts, samples)
        records["loss"].append(loss.item())
        records["ids"] += list(ids)
        records["references"] += list(texts)
        records["hypotheses"] += [self.rule.apply(one.text) for one in decoded]
        records["special"] += [one.special for one in decoded]
        return loss

    def log_records(
        self, split: str, records: dict[str, list], logger: Any, global_step: int, **kwargs: Any
    ) -> list[str]:
        """Log loss, ``wer`` and ``cer`` (per cent), special tokens dropped.

        Write the transcripts of an evaluated split.

        Returns:
            ``["dev-best.ckpt"]`` where this is the lowest WER on dev so far.
        """
        rows = [
            transcript(*row) for row in zip(records["ids"], records["references"], records["hypotheses"], strict=True)
        ]
        if split != "train":  # in the order of the corpus, whatever the order of the batches
            place = {utterance.id: number for number, utterance in enumerate(self._utterances[split])}
            rows.sort(key=lambda row: place.get(row.id, 0))
        values = {"loss": sum(records["loss"]) / len(records["loss"])} | error_rates(rows)
        if split.startswith("test"):
            low, high = bootstrap_ratio([row.errors for row in rows], [row.words for row in rows])
            values |= {"wer_low": 100 * low, "wer_high": 100 * high}
        if split != "train":
            values["special_tokens"] = sum(records["special"])
            values |= self._of_new_texts(rows)
        for key, value in values.items():
            logger.add_scalar(f"{self.name}/{split}-{key}", value, global_step=global_step)
        _report(split, values, len(rows))
        if split != "train":
            write_transcripts(rows, self.expdir / f"transcripts-{split}.jsonl")
        score = torch.full_like(self.best_score, values["wer"])  # rounded as the best one is, so that equals stay equal
        if split == "dev" and bool(score < self.best_score):
            self.best_score = score
            return ["dev-best.ckpt"]
        return []

    def load_audio(self, path: Path) -> Tensor:
        """Return a recording of any sample rate for :meth:`inference`, float32 [samples] at 16 kHz."""
        return torch.from_numpy(self.recognizer.pad(read_audio(Path(path))))

    def inference(self, features: Sequence[Tensor], filenames: Sequence[str]) -> list[str]:
        """Return the transcripts of unpadded clips as the vocabulary writes them; ``inference.ark`` holds them too."""
        decoded = self.recognizer.decode(features, None)
        transcripts = [one.text for one in decoded]
        lines = [f"{name} {text}" for name, text in zip(filenames, transcripts, strict=True)]
        write_text(self.expdir / "inference.ark", "".join(f"{line}\n" for line in lines))
        for line in lines:
            logger.info("%s", line)
        return transcripts

    # -- parts -----------------------------------------------------------------------------------------------------

    def _by_length(self, utterances: Sequence[Utterance]) -> list[Utterance]:
        """Return the clips by length: batches of a Whisper, on which no transcript depends, then hold little padding.

        The longest comes first: what does not fit in memory fails at once. The features of other upstreams may depend
        on the batch, so that theirs keep their order, as does a split of which only the first batches are scored.
        """
        if self.data.eval_batch_size == 1 or not (self._scores_all and isinstance(self.recognizer, WhisperRecognizer)):
            return list(utterances)
        lengths = {one.id: self.recognizer.padded(length_of(one.audio)) for one in utterances}
        return sorted(utterances, key=lambda one: -lengths[one.id])

    def _of_new_texts(self, rows: Sequence[ScoredTranscript]) -> dict[str, float]:
        """Return ``wer_new_texts``: the WER over utterances whose text nobody reads in train, where only some are so.

        Every speaker of VCTK reads the same first 24 sentences, so a split by speaker shares them.
        """
        known = {self.rule.apply(utterance.text) for utterance in self._utterances.get("train", ())}
        new = [row for row in rows if row.reference not in known]
        return {"wer_new_texts": error_rates(new)["wer"]} if 0 < len(new) < len(rows) else {}

    @property
    def splits_sha256(self) -> str:
        """SHA-256 of the split lists."""
        return split_hash(self._lists)

    def _write_splits(self) -> None:
        """Keep the split lists and their hash in the run folder."""
        path = self.expdir / SPLIT_FILE
        digest = self.splits_sha256
        if path.is_file() and parse_json(path.read_text(encoding="utf-8")).get("sha256") == digest:
            return
        if path.is_file():
            logger.warning("%s held other splits than this run's; it is replaced", path)
        content = {"corpus": self.corpus.card.name, "rule": self.data.split, "sha256": digest, **self._lists}
        write_json(path, content, indent=1)

    def _warn_of_unknown_characters(self, dataset: RecognitionDataset) -> None:
        if getattr(self, "_warned", False):
            return
        self._warned = True
        unknown = {c for u in dataset.utterances for c in self.recognizer.unknown(self.rule.apply(u.text))}
        if unknown:
            logger.warning("the head has no token for %s: left out of the training texts", " ".join(sorted(unknown)))


def error_rates(rows: Sequence[ScoredTranscript]) -> dict[str, float]:
    """Return ``wer`` and ``cer`` of a corpus in per cent; 100 where there is nothing to count (as s3prl's asr)."""
    words, characters = sum(row.words for row in rows), sum(row.characters for row in rows)
    return {
        "wer": 100.0 * sum(row.errors for row in rows) / words if words else 100.0,
        "cer": 100.0 * sum(row.character_errors for row in rows) / characters if characters else 100.0,
    }


def _report(split: str, values: dict[str, float], count: int) -> None:
    interval = f" [{values['wer_low']:.2f}, {values['wer_high']:.2f}]" if "wer_low" in values else ""
    logger.info(
        "%s: WER %.2f %%%s, CER %.2f %%, loss %.4f, %d utterances",
        split, values["wer"], interval, values["cer"], values["loss"], count,
    )  # fmt: skip
    if "wer_new_texts" in values:
        logger.info("%s: WER %.2f %% without the texts that train has too", split, values["wer_new_texts"])
    if values.get("special_tokens"):
        logger.warning(
            "%s: %d special tokens of the head were dropped from the transcripts", split, values["special_tokens"]
        )
