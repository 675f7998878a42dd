"""Tasks with a label per recording: keywords, intents, speakers, environmental sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ext.compat.sox import apply_effects_tensor
from s3prl_ext.corpora.audio import SAMPLE_RATE
from s3prl_ext.corpora.esc50 import CLASSES as SOUNDS
from s3prl_ext.errors import unknown_name
from s3prl_ext.prediction import windows as cuts
from s3prl_ext.prediction.decoder import Decoder, Inputs
from s3prl_ext.prediction.labels import emotions, intents
from s3prl_ext.prediction.recordings import Recording
from s3prl_ext.prediction.results import LabelResult
from s3prl_ext.prediction.windows import Window

SPEAKERS = range(10001, 11252)  # VoxCeleb1's ids; s3prl's head has an output for each, whatever was trained on


class PooledHead(nn.Module):
    """The projection and model of s3prl's classification tasks, under the names that their checkpoints have.

    Args:
        width: features of a frame.
        section: ``modelrc`` of the task file.
        outputs: number of scores.
        more: module of s3prl with further models that ``select`` may name.

    Raises:
        UsageError: s3prl has no model of the name in ``select``.
    """

    def __init__(self, width: int, section: Mapping[str, Any], outputs: int, more: ModuleType | None = None) -> None:
        from s3prl.downstream import model

        super().__init__()
        places = [place for place in (model, more) if place is not None]
        known = {
            name: kind
            for place in places
            for name, kind in vars(place).items()
            if getattr(kind, "__module__", "") == place.__name__
        }
        if section["select"] not in known:
            raise unknown_name("model of the head (modelrc.select)", section["select"], known)
        self.projector = nn.Linear(width, section["projector_dim"])
        self.model = known[section["select"]](
            input_dim=section["projector_dim"], output_dim=outputs, **section.get(section["select"], {})
        )
        self.register_buffer("best_score", torch.zeros(1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the scores (logits) of a batch, [batch, outputs]."""
        lengths = torch.tensor([len(feature) for feature in features], device=features[0].device)
        return self.model(self.projector(pad_sequence(list(features), batch_first=True)), lengths)[0]


class SoundHead(nn.Module):
    """The linear head of ``-d esc50`` on features averaged over time, under the names that its checkpoints have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, len(SOUNDS))
        self.register_buffer("best_score", torch.zeros(1))
        self.register_buffer("split_digest", torch.zeros(32, dtype=torch.uint8))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the scores (logits) of a batch, [batch, 50]."""
        return self.head(torch.stack([feature.float().mean(0) for feature in features]))


class LabelDecoder(Decoder):
    """A softmax over classes. Of a long recording the probabilities of equal windows are averaged.

    Args:
        inputs: what was trained.
        head: gives the scores of a batch.
        labels: name of each output.
    """

    RESULT = LabelResult
    OPTIONS = ("window", "top")

    def __init__(self, inputs: Inputs, head: nn.Module, labels: Sequence[str]) -> None:
        super().__init__(inputs)
        self.head = head
        self.labels = list(labels)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("rank", *super().columns) if (self.options.top or 1) > 1 else super().columns

    def windows(self, samples: np.ndarray) -> list[Window]:
        return cuts.equal(len(samples), self.longest)

    def decode(self, features: Sequence[Tensor], samples: Sequence[int]) -> list[np.ndarray]:
        return list(self.probabilities(self.head(features)).double().cpu().numpy())

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return the probability of each label, [batch, labels], from the head's scores [batch, outputs]."""
        return torch.softmax(scores, dim=-1)

    def join(self, recording: Recording, windows: Sequence[Window], pieces: Sequence[np.ndarray]) -> LabelResult:
        mean = np.average(pieces, axis=0, weights=[end - start for start, end in windows])
        order = np.argsort(-mean, kind="stable")[: self.options.top or 1]
        top = tuple((self.labels[index], float(mean[index])) for index in order)
        slots = tuple(self.slots(int(index), mean) for index in order)
        notes, rows = recording.notes, []
        if len(windows) > 1:
            notes += (f"cut into {len(windows)} windows, whose probabilities are averaged",)
            for (start, end), piece in zip(windows, pieces, strict=True):
                best = int(np.argmax(piece))
                rows.append((start / SAMPLE_RATE, end / SAMPLE_RATE, self.labels[best], float(piece[best])))
        return LabelResult(recording.name, recording.seconds, notes, *top[0], top, slots[0], tuple(rows), slots)

    def slots(self, label: int, probabilities: np.ndarray) -> dict[str, tuple[str, float]]:
        """Return value and probability of each slot of a label; without slots nothing."""
        return {}


class KeywordDecoder(LabelDecoder):
    """Keyword spotting, whose clips s3prl attenuates by 3 dB."""

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        from s3prl.downstream.speech_commands.dataset import EFFECTS

        return apply_effects_tensor(torch.from_numpy(samples)[None], SAMPLE_RATE, EFFECTS)[0][0].numpy()


class SpeakerDecoder(LabelDecoder):
    """Speaker identification; whole utterances, as they are tested."""

    WINDOW: ClassVar[float] = 150.0  # seconds; VoxCeleb1's longest utterance has 145


class IntentDecoder(LabelDecoder):
    """Intents: a label is one value of each slot, its probability the product of theirs."""

    def __init__(self, inputs: Inputs, head: nn.Module, values: Mapping[str, Sequence[str]]) -> None:
        self.values = {slot: list(names) for slot, names in values.items()}
        self._sizes = [len(names) for names in self.values.values()]
        indices = np.ndindex(*self._sizes)
        names = [" / ".join(v[i] for v, i in zip(self.values.values(), index, strict=True)) for index in indices]
        super().__init__(inputs, head, names)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, *self.values)

    def probabilities(self, scores: Tensor) -> Tensor:
        joint = torch.ones(len(scores), 1, device=scores.device, dtype=torch.double)
        for part in scores.double().split(self._sizes, dim=1):
            joint = (joint[:, :, None] * torch.softmax(part, dim=-1)[:, None, :]).flatten(1)
        return joint

    def slots(self, label: int, probabilities: np.ndarray) -> dict[str, tuple[str, float]]:
        table = probabilities.reshape(self._sizes)
        found = {}
        for axis, (index, slot) in enumerate(zip(np.unravel_index(label, self._sizes), self.values, strict=True)):
            marginal = table.sum(axis=tuple(other for other in range(table.ndim) if other != axis))
            found[slot] = (self.values[slot][int(index)], float(marginal[int(index)]))
        return found


def keywords(inputs: Inputs) -> Decoder:
    """Return the decoder of ``-d speech_commands``."""
    from s3prl.downstream.speech_commands.dataset import CLASSES

    return KeywordDecoder(inputs, PooledHead(inputs.width, inputs.section["modelrc"], len(CLASSES)), CLASSES)


def intent(inputs: Inputs) -> Decoder:
    """Return the decoder of ``-d fluent_commands``."""
    values = intents(inputs.section)
    outputs = sum(len(names) for names in values.values())
    return IntentDecoder(inputs, PooledHead(inputs.width, inputs.section["modelrc"], outputs), values)


def speaker(inputs: Inputs) -> Decoder:
    """Return the decoder of ``-d voxceleb1``."""
    labels = [f"id{number}" for number in SPEAKERS]
    return SpeakerDecoder(inputs, PooledHead(inputs.width, inputs.section["modelrc"], len(labels)), labels)


def emotion(inputs: Inputs) -> Decoder:
    """Return the decoder of ``-d emotion``."""
    from s3prl.downstream.emotion import model

    labels = emotions(inputs.section)
    return LabelDecoder(inputs, PooledHead(inputs.width, inputs.section["modelrc"], len(labels), model), labels)


def sound(inputs: Inputs) -> Decoder:
    """Return the decoder of ``-d esc50``."""
    return LabelDecoder(inputs, SoundHead(inputs.width), SOUNDS)
