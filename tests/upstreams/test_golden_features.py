"""Every transformers model that is taken as an upstream gives the hidden states of transformers 4, on any version."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn.utils.rnn import pad_sequence

from s3prl_ext import adapters
from s3prl_ext.errors import DataError
from s3prl_ext.model_settings import model_config
from s3prl_ext.transformers_models import MODEL_TYPES, SPEECH_UPSTREAMS
from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel
from s3prl_ext.upstreams.layer_similarity.speech_encoder import SpeechEncoder
from tests.support import factories

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "transformers4"
FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/config.json"))
PRENORM = [folder for folder in FOLDERS if folder.name.endswith("prenorm")]
FRAMES = {"AST": (6, 3), "Moonshine": (40, 22), "Wav2Vec2Bert": (49, 27)}  # that the models have of the two clips
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def clips() -> list[torch.Tensor]:
    return [torch.from_numpy(clip) for clip in np.load(GOLDEN / "wavs.npz").values()]


def golden(folder: Path) -> torch.Tensor:
    """Return what transformers 4 gave, [layers + 1, clips, frames, width]; of some families padded from single clips."""
    layers = [stored(folder, "a", name) for name in ("0", "1", "2")] if is_single(folder) else []
    if not layers:
        states = np.load(folder / "hidden_states.npz")
        layers = [torch.from_numpy(states[name]) for name in sorted(set(states.files) - {"last"})]
        if folder.name.startswith("SEW"):  # 24 frames, and 48 of the model's output
            layers = [layer.repeat_interleave(2, 1) for layer in layers[:-1]] + [torch.from_numpy(states["last"])]
        return torch.stack(layers)
    return torch.stack(
        [
            pad_sequence([first, stored(folder, "b", name)], batch_first=True)
            for first, name in zip(layers, ("0", "1", "2"), strict=True)
        ]
    )


def is_single(folder: Path) -> bool:
    """Return whether the clips were run one by one: Moonshine's group norm reads padding, and AST pads by itself."""
    return folder.name in ("AST", "Moonshine")


def stored(folder: Path, clip: str, name: str) -> torch.Tensor:
    """Return one state of one clip, [frames, width]; AST's patches, band by band behind two tokens, as means over bands."""
    state = torch.from_numpy(np.load(folder / "hidden_states.npz")[clip + name])[0]
    if folder.name != "AST":
        return state
    steps, frames = 6, {"a": 6, "b": 3}[clip]
    bands = [state[2 + band * steps : 2 + (band + 1) * steps] for band in range(3)]
    return (sum(bands) / 3)[:frames]


def of_the_clips(states: torch.Tensor, folder: Path) -> torch.Tensor:
    """Return states as far as the models have them; what is behind the second clip as zeros where it differs.

    For SEW-D, transformers 4 and 5 mask queries of padding otherwise; of those in ``FRAMES`` the last state is repeated.
    """
    if folder.name in FRAMES:
        first, second = FRAMES[folder.name]
        states = states[..., :first, :].clone()
        states[..., 1, second:, :] = 0.0
    if folder.name == "SEWD":
        states = states.clone()
        states[..., 1, 26:, :] = 0.0
    return states


def last(folder: Path) -> torch.Tensor:
    """Return the model's own last hidden state under transformers 4, [clips, frames, width]."""
    if is_single(folder):
        return pad_sequence([stored(folder, clip, "last") for clip in ("a", "b")], batch_first=True)
    states = np.load(folder / "hidden_states.npz")
    return torch.from_numpy(states["last" if "last" in states.files else sorted(states.files)[-1]])


def build(name: str, **options: str) -> torch.nn.Module:
    import s3prl.hub

    return getattr(s3prl.hub, name)(**options)


def clips_of(folder: Path) -> list[torch.Tensor]:
    """Return the clips that a golden model was run on: of AST not more than its window of 9280 samples."""
    return [
        clip[:length]
        for clip, length in zip(clips(), (9280, 4700) if folder.name == "AST" else (None, None), strict=True)
    ]


def features(upstream: torch.nn.Module, wavs: list[torch.Tensor] | None = None) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(upstream.eval()(wavs or clips())["hidden_states"])


def merge_file(path: Path, **target: str) -> str:
    config = model_config(Path(target.get("model") or target["ckpt"]))
    sizes = {"layers": config.get("num_hidden_layers") or config["encoder_num_hidden_layers"]}
    source = factories.bert_folder(path.parent / "bert", **sizes, width=config["hidden_size"], heads=2)
    path.write_text(yaml.safe_dump({"target": target, "source": {"model": str(source)}, "lambda": 0.0}))
    return str(path)


def test_there_is_a_golden_model_of_every_family_that_hf_speech_custom_takes():
    assert {model_config(folder)["model_type"] for folder in FOLDERS} == set(MODEL_TYPES)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_upstreams_of_s3prl_and_ours(folder):
    own = SPEECH_UPSTREAMS[model_config(folder)["model_type"]]
    for name in {own, "hf_speech_custom"}:
        upstream = build(name, ckpt=str(folder))
        found = features(upstream, clips_of(folder))
        torch.testing.assert_close(of_the_clips(found, folder), of_the_clips(golden(folder), folder), **CLOSE)
    with torch.no_grad():
        found = upstream.eval()(clips_of(folder)).get("last_hidden_state", golden(folder)[-1])
    torch.testing.assert_close(of_the_clips(found, folder), of_the_clips(last(folder), folder), **CLOSE)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_merge_that_changes_nothing(folder, tmp_path):
    upstream = build("merged_attention", model_config=merge_file(tmp_path / "merge.yaml", model=str(folder)))
    found = features(upstream, clips_of(folder))
    torch.testing.assert_close(of_the_clips(found, folder), of_the_clips(golden(folder), folder), **CLOSE)


LENGTHS = (4800, 5000, 5599, 8000)  # samples
# Families whose own convolutions, of positions or in each layer, read the padding behind a clip.
READ_PADDING = ("data2vec-audio", "wav2vec2-conformer")


@pytest.mark.parametrize("name", ("Wav2Vec2Bert", "AST", "Moonshine"))
def test_s3prls_featurizer_keeps_the_same_frames_of_a_clip_alone_and_in_a_batch(name):
    """It keeps round(samples / rate) of each, which may be more than the model has of the clip."""
    assert_kept_alike(build("hf_speech_custom", ckpt=str(GOLDEN / name)).eval(), LENGTHS)


def test_the_featurizer_keeps_more_states_of_a_clip_than_the_window_of_an_ast_has(tmp_path):
    """In the proportions of the released model, whose 101 states stand for 10.1 of 10.24 s."""
    folder = factories.ast_folder(tmp_path / "ast", patch_size=16, max_length=64)
    upstream = build("hf_speech_custom", ckpt=str(folder)).eval()
    assert upstream.steps == 5 and [round(samples / 1600) for samples in (9000, 10240)] == [6, 6]
    pieces = (10400, 12000, 16800)  # of 5 states and 1.5, 5 and 2.5, 5, 5 and 0.5
    assert_kept_alike(upstream, (8000, 8800, 9000, 10240, *pieces))


def assert_kept_alike(upstream, lengths):
    from s3prl.upstream.interfaces import Featurizer

    featurizer = Featurizer(upstream, "hidden_states", "cpu")
    longest = max(map(len, clips()))
    wavs = [torch.randn(samples, generator=torch.Generator().manual_seed(samples)) for samples in (*lengths, longest)]
    with torch.no_grad():
        for wav, beside in zip(wavs, featurizer(wavs, upstream(wavs)), strict=True):
            (alone,) = featurizer([wav], upstream([wav]))
            assert len(alone) == len(beside) == round(len(wav) / featurizer.downsample_rate)
            torch.testing.assert_close(beside, alone, **CLOSE)


def assert_as_alone(upstream, wavs, reads_padding):
    """Compare the shorter clip of a batch with itself alone, in all states; `reads_padding`: it must differ."""
    together = features(upstream, wavs)
    for index, wav in enumerate(wavs):
        alone = features(upstream, [wav])[:, 0]
        found = together[:, index, : alone.shape[1]]
        if reads_padding and len(wav) < max(map(len, wavs)):
            assert (found - alone)[-1].abs().mean() > 0.01 * alone[-1].abs().mean()
        else:
            torch.testing.assert_close(found, alone, atol=3e-5, rtol=0)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_a_clip_has_the_same_features_alone_and_in_a_batch_or_its_family_reads_the_padding(folder):
    config = model_config(folder)
    reads_padding = config["model_type"] in READ_PADDING or config.get("feat_extract_norm") == "group"
    assert_as_alone(build("hf_speech_custom", ckpt=str(folder)), clips_of(folder), reads_padding)


WITH_LAYER_NORM = {
    "data2vec-audio": factories.data2vec_audio_folder,
    **{
        kind: functools.partial(factories.speech_family_folder, family=family, stable_norm=True)
        for kind, family in {"wav2vec2-conformer": "Wav2Vec2Conformer", "sew": "SEW", "sew-d": "SEWD"}.items()
    },
}


@pytest.mark.parametrize("kind", WITH_LAYER_NORM)
def test_families_whose_golden_models_have_a_group_norm_with_layer_norm(kind, tmp_path):
    """In the convolutions on the waveform, as the released data2vec-audio and wav2vec2-conformer have it."""
    upstream = build("hf_speech_custom", ckpt=str(WITH_LAYER_NORM[kind](tmp_path / "model")))
    assert model_config(tmp_path / "model")["model_type"] == kind
    assert_as_alone(upstream, clips(), kind in READ_PADDING)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_lengths_are_within_what_s3prl_tolerates(folder):
    """s3prl's featurizer refuses features of which the number differs from samples / rate by five or more."""
    upstream = build("hf_speech_custom", ckpt=str(folder)).eval()
    for samples in (1600, 8000, 16000, 63999, 160000):
        with torch.no_grad():
            output = upstream([torch.randn(samples)])
        for key, states in (
            ("hidden_states", output["hidden_states"][0]),
            ("last_hidden_state", output["last_hidden_state"]),
        ):
            assert abs(states.shape[1] - round(samples / upstream.get_downsample_rates(key))) < 5, samples


@pytest.mark.parametrize("name", ["Wav2Vec2Bert", "AST", "Moonshine"])
@pytest.mark.parametrize("samples", [1, 399, 560, 894])
def test_a_clip_below_one_frame_is_followed_by_silence(name, samples):
    upstream = build("hf_speech_custom", ckpt=str(GOLDEN / name))
    wav = clips()[0][:samples]
    states = features(upstream, [wav])
    assert states.shape[2] >= 1 and torch.isfinite(states).all()
    least = {"Wav2Vec2Bert": 560, "AST": 400, "Moonshine": 895}[name]
    padded = torch.nn.functional.pad(wav, (0, max(0, least - samples)))
    expected = features(upstream, [padded])[:, :, : states.shape[2]]
    torch.testing.assert_close(states, expected, rtol=0, atol=0)


def test_ast_reads_a_long_clip_in_pieces():
    upstream = build("hf_speech_custom", ckpt=str(GOLDEN / "AST"))
    wav = clips()[0]
    pieces = [features(upstream, [piece])[:, 0] for piece in wav.split(9600)]
    torch.testing.assert_close(features(upstream, [wav])[:, 0], torch.cat(pieces, 1), **CLOSE)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("Wav2Vec2Bert", "num_mel_bins", 4, "makes 8 values per frame .* but its model reads 16: take both"),
        ("Wav2Vec2Bert", "stride", 0, "says stride: 0, which must be a whole number above 0"),
        ("AST", "max_length", 60, "says max_length: 60, but its config.json 58: take both"),
        ("AST", "std", 0.0, "says std: 0.0, which must be a number above 0"),
        ("Moonshine", "sampling_rate", 8000, "sampling_rate: 8000, which must be 16000"),
    ],
)
def test_preprocessing_that_does_not_fit_the_model_is_refused(name, key, value, message, tmp_path):
    folder = shutil.copytree(GOLDEN / name, tmp_path / "model")
    settings = json.loads((folder / "preprocessor_config.json").read_text()) | {key: value}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=message):
        build("hf_speech_custom", ckpt=str(folder))


def test_preprocessing_of_another_family_is_refused(tmp_path):
    folder = shutil.copytree(GOLDEN / "Wav2Vec2Bert", tmp_path / "model")
    shutil.copy(GOLDEN / "Hubert_prenorm" / "preprocessor_config.json", folder)
    with pytest.raises(DataError, match="is that of a Wav2Vec2FeatureExtractor, but its model reads what SeamlessM4T"):
        build("hf_speech_custom", ckpt=str(folder))


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
