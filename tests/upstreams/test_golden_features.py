"""Every transformers model that is taken as an upstream gives the hidden states of transformers 4, on any version."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from s3prl_ext import adapters
from s3prl_ext.errors import DataError
from s3prl_ext.model_settings import model_config
from s3prl_ext.transformers_models import MODEL_TYPES, SPEECH_UPSTREAMS
from s3prl_ext.upstreams.layer_similarity.speech_encoder import SpeechEncoder
from s3prl_ext.upstreams.merged_attention.model import TransformersSpeechModel
from tests.support import factories

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "transformers4"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/config.json"))
PRENORM = [folder for folder in FOLDERS if folder.name.endswith("prenorm")]
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def clips() -> list[torch.Tensor]:
    return [torch.from_numpy(clip) for clip in np.load(GOLDEN / "wavs.npz").values()]


def golden(folder: Path) -> torch.Tensor:
    """Return what transformers 4 gave, [layers + 1, clips, frames, width]."""
    states = np.load(folder / "hidden_states.npz")
    return torch.stack([torch.from_numpy(states[str(layer)]) for layer in range(len(states.files))])


def build(name: str, **options: str) -> torch.nn.Module:
    import s3prl.hub

    return getattr(s3prl.hub, name)(**options)


def features(upstream: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(upstream.eval()(clips())["hidden_states"])


def merge_file(path: Path, **target: str) -> str:
    source = factories.bert_folder(path.parent / "bert", layers=3, width=32, heads=4)
    path.write_text(yaml.safe_dump({"target": target, "source": {"model": str(source)}, "lambda": 0.0}))
    return str(path)


def test_there_is_a_golden_model_of_every_family_that_hf_speech_custom_takes():
    assert {model_config(folder)["model_type"] for folder in FOLDERS} == set(MODEL_TYPES)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_upstreams_of_s3prl_and_ours(folder):
    own = SPEECH_UPSTREAMS[model_config(folder)["model_type"]]
    for name in {own, "hf_speech_custom"}:
        upstream = build(name, ckpt=str(folder))
        torch.testing.assert_close(features(upstream), golden(folder), **CLOSE)
    with torch.no_grad():
        last = upstream.eval()(clips()).get("last_hidden_state", golden(folder)[-1])
    torch.testing.assert_close(last, golden(folder)[-1], **CLOSE)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_merge_that_changes_nothing(folder, tmp_path):
    upstream = build("merged_attention", model_config=merge_file(tmp_path / "merge.yaml", model=str(folder)))
    torch.testing.assert_close(features(upstream), golden(folder), **CLOSE)


def test_a_merge_named_by_the_upstream_of_s3prl(tmp_path):
    config = merge_file(tmp_path / "merge.yaml", upstream="hf_hubert_custom", ckpt=str(GOLDEN / "Hubert_prenorm"))
    torch.testing.assert_close(
        features(build("merged_attention", model_config=config)), golden(GOLDEN / "Hubert_prenorm"), **CLOSE
    )


@pytest.mark.parametrize("folder", PRENORM, ids=lambda f: f.name)
def test_layers_are_compared_by_block_outputs_which_end_before_the_final_norm(folder, tmp_path):
    """MAM's Table 3 compares block outputs: the last one is the only one that no hidden state holds."""
    import soundfile

    soundfile.write(tmp_path / "a.wav", clips()[0].numpy(), 16000, subtype="FLOAT")
    upstream = TransformersSpeechModel(folder).eval()
    (blocks,) = SpeechEncoder(upstream, "golden").states([tmp_path / "a.wav"])
    with torch.no_grad():
        states = torch.stack(upstream([clips()[0]])["hidden_states"])[:, 0]
        torch.testing.assert_close(blocks[:-1], states[1:-1], **CLOSE)
        torch.testing.assert_close(upstream.model.encoder.layer_norm(blocks[-1]), states[-1], **CLOSE)
    assert not torch.allclose(blocks[-1], states[-1], atol=0.1)


def adapted(method: str | None, run_before: bool) -> TransformersSpeechModel:
    upstream = TransformersSpeechModel(GOLDEN / "Hubert_prenorm")
    if run_before:  # transformers 5 installs the hooks that keep hidden states in the first pass
        features(upstream)
    if method is not None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            adapters.insert(upstream, method, adapters.parse_options(method, {}, "tuning"))
        with torch.no_grad():
            for parameter in upstream.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return upstream


@pytest.mark.parametrize("method", [None, *adapters.ADAPTERS])
def test_the_last_state_is_the_models_own_in_training_and_with_adapters(method):
    new, run_before = (adapted(method, before) for before in (False, True))
    torch.testing.assert_close(features(new), features(run_before), rtol=0, atol=0)
    for upstream in (new, copy.deepcopy(new), run_before):
        output = upstream.train()(clips())
        assert len(output["hidden_states"]) == 4
        torch.testing.assert_close(output["hidden_states"][-1], output["last_hidden_state"], rtol=0, atol=0)


def test_a_folder_that_asks_for_the_state_before_the_norm_gives_the_one_after_it(tmp_path):
    folder = shutil.copytree(GOLDEN / "Wav2Vec2_prenorm", tmp_path / "model")
    config = model_config(folder) | {"tie_last_hidden_states": False, "layerdrop": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(features(build("hf_wav2vec2_custom", ckpt=str(folder))), golden(folder), **CLOSE)


def test_a_model_that_is_shortened_behind_its_encoder_is_refused(tmp_path):
    import transformers

    config = transformers.AutoConfig.from_pretrained(GOLDEN / "Wav2Vec2_prenorm")
    config.add_adapter = True
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path)
    shutil.copy(GOLDEN / "Wav2Vec2_prenorm" / "preprocessor_config.json", tmp_path)
    with pytest.raises(DataError, match="add_adapter: true, which shortens"):
        build("hf_wav2vec2_custom", ckpt=str(tmp_path))
