"""SEW and SEW-D: the transformer runs at a lower frame rate than the convolutions before it.

Source: Wu et al. 2021, Performance-Efficiency Trade-offs in Unsupervised Pre-training for Speech Recognition.
"""

from __future__ import annotations

from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel


class SqueezedSpeechModel(TransformersSpeechModel):
    """A SEW or SEW-D: hidden states at the rate of the blocks (40 ms), the last hidden state upsampled to 20 ms."""

    ties_last = False

    def get_downsample_rates(self, key: str | None = None) -> int:
        """Return the number of samples per frame, which of ``last_hidden_state`` is that of the convolutions."""
        rate = super().get_downsample_rates(key)
        return rate if key == "last_hidden_state" else rate * int(self.model.config.squeeze_factor)
