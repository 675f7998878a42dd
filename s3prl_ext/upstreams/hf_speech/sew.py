"""SEW and SEW-D: the transformer runs at a lower frame rate than the convolutions before it.

Source: Wu et al. 2021, Performance-Efficiency Trade-offs in Unsupervised Pre-training for Speech Recognition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel


class SqueezedSpeechModel(TransformersSpeechModel):
    """A SEW or SEW-D, with all its states at the rate of the model's output, 20 ms.

    The last hidden state is the model's own, which it upsamples; of the other blocks, which run at 40 ms, each frame is
    repeated.
    """

    ties_last = False

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return the features of a batch, see :meth:`TransformersSpeechModel.forward`."""
        output = self.model(**self.prepare(wavs), output_hidden_states=True)
        last = output.last_hidden_state
        frames = torch.arange(last.shape[1], device=last.device) // int(self.model.config.squeeze_factor)
        hidden = [state[:, frames.clamp(max=state.shape[1] - 1)] for state in output.hidden_states[:-1]]
        return {"hidden_states": (*hidden, last), "last_hidden_state": last}
