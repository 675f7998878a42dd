"""Reading recordings of any kind, finding them in folders, and cutting long ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import wavfile

from s3prl_ext.corpora.overlaps import overlapping
from s3prl_ext.errors import DataError
from s3prl_ext.prediction import windows
from s3prl_ext.prediction.recordings import find, from_samples, read

SECOND = 16000


def tone(rate: int, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_any_rate_and_format(tmp_path, rate, suffix):
    if suffix in ("ogg", "mp3") and rate > 48000:
        pytest.skip("the format has no such rate")
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(rate), rate)
    recording = read(path)
    assert recording.samples.dtype == np.float32 and abs(recording.seconds - 1) < 0.08
    spectrum = np.abs(np.fft.rfft(recording.samples[4000:12000]))
    assert np.argmax(spectrum) * 2 == 440, "the tone has its pitch at 16 kHz"
    assert recording.notes == (() if rate == SECOND else (f"resampled from {rate} Hz to 16000 Hz",))


@pytest.mark.parametrize("subtype", ["PCM_16", "ULAW", "FLOAT"])
def test_a_wav_that_is_cut_short_is_read_and_said(tmp_path, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16000), 16000, subtype=subtype)
    assert read(path).notes == ()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (note,) = read(path).notes
    assert note.startswith("cut short: its header promises 1.00 s, the file holds 0.")


SIZES = {  # of the samples, as programs write them into a pipe -> whether that says how many there are
    0x7FFFF000: False, 0x7FFFFFFF: False, 0x7FFFFFFF - 36: False, 0x80000000: False, 0xFFFFF000: False,
    0xFFFFFFFF: False, 0xFFFFFFFF - 44: False, 96_000: True, 0x70000000: True, 0xB0000000: True,
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_a_length_that_was_not_known_promises_nothing(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000, subtype="PCM_16")
    streamed = bytearray((tmp_path / "a.wav").read_bytes())
    place = streamed.index(b"data") + 4
    streamed[place : place + 4] = size.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(streamed)
    recording = read(tmp_path / "a.wav")
    assert recording.seconds == 1 and any("cut short" in note for note in recording.notes) == SIZES[size]


def test_channels_are_averaged(tmp_path):
    left, right = tone(44100), 0.5 * tone(44100)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 44100, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", 0.75 * tone(44100), 44100, subtype="FLOAT")
    stereo, mono = read(tmp_path / "a.wav"), read(tmp_path / "b.wav")
    assert np.allclose(stereo.samples, mono.samples, atol=1e-6)
    assert stereo.notes == ("2 channels averaged", "resampled from 44100 Hz to 16000 Hz")


def test_what_is_no_audio(tmp_path):
    (tmp_path / "text.txt").write_text("These are words, no sounds.\n")
    (tmp_path / "text.wav").write_text("These are words, no sounds.\n")
    (tmp_path / "samples.raw").write_bytes(bytes(100))
    (tmp_path / "nothing.wav").write_bytes(b"")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "cut.flac", tone(16000), 16000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:40])
    for name in ("text.txt", "text.wav", "samples.raw", "nothing.wav", "empty.wav", "cut.flac"):
        with pytest.raises(DataError, match=rf"{name} (cannot be read as audio|contains no samples)"):
            read(tmp_path / name)
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "missing.wav")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


def test_samples_that_are_no_numbers():
    for wrong in (np.nan, np.inf):
        with pytest.raises(DataError, match="not finite"):
            from_samples(np.array([0.1, wrong], np.float32), 16000)
    with pytest.raises(DataError, match="more channels than samples"):
        from_samples(np.zeros((2, 16000)), 16000)
    with pytest.raises(DataError, match="no samples"):
        from_samples(np.zeros((0, 2)), 16000)
    assert from_samples(tone(16000)[:, None], 16000).notes == ()


@pytest.mark.parametrize(("dtype", "subtype"), [("uint8", "PCM_U8"), ("int16", "PCM_16"), ("int32", "PCM_32")])
def test_integers_are_scaled_as_soundfile_scales_those_of_a_file(dtype, subtype, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(16000), 16000, subtype=subtype)
    _, samples = wavfile.read(tmp_path / "a.wav")
    assert samples.dtype == dtype
    scaled = from_samples(samples, 16000)
    assert np.array_equal(scaled.samples, read(tmp_path / "a.wav").samples) and 0.1 < abs(scaled.samples).max() <= 1
    (note,) = scaled.notes
    assert note.startswith(f"{dtype} divided by ")


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.bool_, np.complex64])
def test_numbers_of_an_unknown_full_scale_are_refused(dtype):
    with pytest.raises(
        DataError, match=rf"samples holds {np.dtype(dtype)}, whose full scale is not known: give floats"
    ):
        from_samples(np.ones(16000, dtype), 16000)


def test_folders(tmp_path):
    for name in ("b/2.WAV", "b/1.flac", "a.mp3", "c/x.m4a", "notes.txt", "b/list.csv", ".hidden/3.wav", "b/.4.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "d").mkdir()
    files, problems, others = find([tmp_path, tmp_path / "notes.txt", tmp_path / "b" / "1.flac", tmp_path / "d"])
    names = [path.relative_to(tmp_path).as_posix() for path in files]
    assert names == ["a.mp3", "b/1.flac", "b/2.WAV", "c/x.m4a", "notes.txt"], "each once, named ones whatever they are"
    assert [path.name for path in others] == ["list.csv", "notes.txt"]
    assert len(problems) == 1 and "contains no audio file (no file)" in problems[0][1]


def contiguous(cut: list, samples: int) -> bool:
    return cut[0][0] == 0 and cut[-1][1] == samples and all(a[1] == b[0] for a, b in itertools.pairwise(cut))


@given(st.integers(1, 500_000), st.integers(32_000, 200_000))
def test_equal_windows(samples, longest):
    cut = windows.equal(samples, longest)
    lengths = [end - start for start, end in cut]
    assert contiguous(cut, samples) and max(lengths) <= longest and max(lengths) - min(lengths) <= 1
    assert len(cut) == -(-samples // longest)


@given(st.integers(1, 400_000), st.integers(32_000, 100_000), st.integers(0, 5))
def test_windows_at_pauses(samples, longest, seed):
    signal = np.random.default_rng(seed).normal(size=samples).astype(np.float32)
    cut = windows.at_pauses(signal, longest)
    lengths = [end - start for start, end in cut]
    assert contiguous(cut, samples) and 0 < max(lengths) <= longest
    assert len(cut) == 1 or min(lengths) >= windows.SHORTEST


def test_cuts_go_through_pauses():
    rng = np.random.default_rng(0)
    parts, pauses, at = [], [], 0
    for _ in range(30):
        words, pause = rng.integers(3 * SECOND, 6 * SECOND), rng.integers(4800, 9600)
        parts += [rng.normal(0, 0.1, words), rng.normal(0, 1e-4, pause)]
        pauses.append((at + words, at + words + pause))
        at += words + pause
    signal = np.concatenate(parts).astype(np.float32)
    cut = windows.at_pauses(signal, 20 * SECOND)
    assert len(cut) > 6
    for _, end in cut[:-1]:
        assert any(start < end < stop for start, stop in pauses)


@given(st.integers(1, 10_000), st.integers(8, 2000))
def test_overlapping_windows(frames, longest):
    overlap = round(longest / 4)
    cut = overlapping(frames, longest)
    assert cut[0][0] == 0 and cut[-1][1] == frames and {end - start for start, end in cut} == {min(frames, longest)}
    assert all(a[1] - b[0] == overlap for a, b in itertools.pairwise(cut[:-1]))
    assert all(a[1] - b[0] >= overlap and b[1] > a[1] for a, b in itertools.pairwise(cut))
