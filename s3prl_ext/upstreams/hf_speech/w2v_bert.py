"""w2v-BERT 2.0, which reads log-mel spectrograms, two frames of 10 ms stacked.

Source: Seamless Communication et al. 2023, Seamless, section 3.2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_ext.errors import DataError
from s3prl_ext.model_settings import SAMPLE_RATE
from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel, as_array
from s3prl_ext.upstreams.kept_frames import kept_frames

FRAME, HOP = 400, 160  # samples: 25 and 10 ms


class W2vBertModel(TransformersSpeechModel):
    """A w2v-BERT 2.0; a clip gives the same features alone and in a batch.

    Args:
        folder: as for :class:`TransformersSpeechModel`.

    Raises:
        DataError: also where the spectrogram has another size than the model's input.
    """

    extractor_class = "SeamlessM4TFeatureExtractor"
    ties_last = False  # there is no norm after the last block

    def __init__(self, folder: Path):
        super().__init__(folder)
        made, read = self.extracter.num_mel_bins * self.extracter.stride, self.model.config.feature_projection_input_dim
        if made != read:
            raise DataError(
                f"the preprocessor_config.json of {folder} makes {made} values per frame (num_mel_bins x stride), but "
                f"its model reads {read}: take both files from the same model."
            )

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the number of samples per frame: 320, which is 20 ms."""
        return HOP * int(self.extracter.stride)

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return the features of a batch, see :meth:`TransformersSpeechModel.forward`.

        Behind a clip its last state is repeated.
        """
        inputs = self.prepare(wavs)
        output = self.model(**inputs, output_hidden_states=True)
        counts = inputs["attention_mask"].sum(1)
        *hidden, last = kept_frames(
            (*output.hidden_states, output.last_hidden_state), counts, wavs, self.get_downsample_rates()
        )
        return {"hidden_states": tuple(hidden), "last_hidden_state": last}

    def token_mask(self, wavs: Sequence[Tensor]) -> Tensor:
        """Return which frames belong to the clips, [batch, frames]; the last one of an odd number of mel frames not."""
        mask: Tensor = self.prepare(wavs)["attention_mask"]
        return mask.bool()

    def prepare(self, wavs: Sequence[Tensor]) -> Any:
        """Return the normalised spectrograms and the mask of padding.

        A clip below two frames is followed by silence.
        """
        least = FRAME + HOP  # the variance of a mel band needs two frames
        arrays = [as_array(wav, least) for wav in wavs]
        inputs = self.extracter(
            arrays, return_tensors="pt", padding=True, sampling_rate=SAMPLE_RATE, return_attention_mask=True
        )
        return inputs.to(wavs[0].device)
