"""Speaker verification: an embedding of each recording, and how alike it is to the first one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from s3prl_ext.compat.sox import apply_effects_tensor, sounds
from s3prl_ext.corpora.audio import SAMPLE_RATE
from s3prl_ext.errors import DataError
from s3prl_ext.prediction.decoder import Decoder, Inputs
from s3prl_ext.prediction.recordings import Recording
from s3prl_ext.prediction.results import Failure, Result, VoiceResult
from s3prl_ext.prediction.windows import Window
from s3prl_ext.tasks.record import LABELS


class VoiceHead(nn.Module):
    """The model of s3prl's speaker verification, under the names that its checkpoints have.

    Args:
        width: features of a frame.
        section: ``modelrc`` of the task file.
        speakers: of the training, whose weights are in a checkpoint too.
    """

    def __init__(self, width: int, section: Mapping[str, Any], speakers: int) -> None:
        from s3prl.downstream.sv_voxceleb1 import model

        super().__init__()
        size, options = section["input_dim"], section["module_config"][section["module"]]
        self.connector = nn.Linear(width, size)
        self.model = model.Model(
            input_dim=size, agg_dim=options.get("agg_dim", size), agg_module_name=section["agg_module"],
            module_name=section["module"], hparams=options, utterance_module_name=section["utter_module"],
        )  # fmt: skip
        loss = section["ObjectiveLoss"]
        losses = {kind.__name__: kind for kind in (model.SoftmaxLoss, model.AMSoftmaxLoss, model.AAMSoftmaxLoss)}
        self.objective = losses[loss](speaker_num=speakers, hidden_dim=size, **section["LossConfig"][loss])
        self.register_buffer("best_score", torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the embedding, [size] of length 1, of one recording's features [frames, width]."""
        hidden = self.connector(features[None])
        return normalize(self.model.inference(hidden, hidden.new_zeros(1, hidden.shape[1])), dim=-1)[0]


def no_reference(error: str) -> DataError:
    """Return the error of a call whose first input gives no recording."""
    return DataError(f"no score without the first recording, which the others are compared with: {error}")


class VoiceDecoder(Decoder):
    """Embeddings of whole recordings, silence cut out as in the corpus; of long ones, of the first window of sound."""

    RESULT = VoiceResult
    WINDOW: ClassVar[float] = 150.0  # seconds; VoxCeleb1's longest utterance has 145

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        labels = inputs.section.get(LABELS)
        if labels is None:
            raise DataError(
                "this run does not say how many speakers it was trained on: resume it for a step, -m train -e."
            )
        self.head = VoiceHead(inputs.width, inputs.section["modelrc"], len(labels["speakers"]))

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        from s3prl.downstream.sv_voxceleb1.dataset import EFFECTS

        return apply_effects_tensor(torch.from_numpy(samples)[None], SAMPLE_RATE, EFFECTS)[0][0].numpy()

    def windows(self, samples: np.ndarray) -> list[Window]:
        """Return the beginning of the recording in which there is sound for the longest window."""
        from s3prl.downstream.sv_voxceleb1.dataset import EFFECTS

        *others, silence = EFFECTS
        heard = sounds(*apply_effects_tensor(torch.from_numpy(samples)[None], SAMPLE_RATE, others), silence)
        if not heard:
            raise DataError("without a sound of 0.1 s or more")
        left = self.longest
        for first, after in heard:
            if after - first > left:
                return [(0, first + left)]
            left -= after - first
        return [(0, len(samples))]

    def decode(self, features: Sequence[Tensor], samples: Sequence[int]) -> list[np.ndarray]:
        embeddings = [self.head(one).double().cpu().numpy() for one in features]
        if not all(np.isfinite(embedding).all() for embedding in embeddings):
            raise DataError("too short for this head: statistics over time need two frames")
        return embeddings

    def join(self, recording: Recording, windows: Sequence[Window], pieces: Sequence[np.ndarray]) -> VoiceResult:
        notes = recording.notes
        if windows[0][1] < len(recording.samples):
            notes += (f"the first {self.longest / SAMPLE_RATE:g} s of sound count: raise --window for more",)
        return VoiceResult(recording.name, recording.seconds, notes, pieces[0])

    def together(self, results: Iterator[Result | Failure]) -> Iterator[Result | Failure]:
        first: VoiceResult | None = None
        for result in results:
            if isinstance(result, VoiceResult):
                first = first or result
                yield replace(result, score=result.likeness(first), against=first.file)
            elif first is None and isinstance(result, Failure):
                raise no_reference(result.error)
            else:
                yield result
