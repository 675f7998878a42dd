"""Speaker verification: the equal error rate against a count and scikit-learn's ROC, trials, lengths of clips."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext.compat import sv_voxceleb1
from s3prl_ext.errors import DataError
from s3prl_ext.tasks import asv
from s3prl_ext.tasks.asv import equal_error_rate, over_trials
from s3prl_ext.training.results.evaluation import evaluate
from tests.support.experiments import make_args, task_config


def counted(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Return the ends of the step of the ROC within which the errors are equal, by trying every threshold."""
    rates = [
        (float(np.mean(scores[labels == 1] < threshold)), float(np.mean(scores[labels == 0] >= threshold)))
        for threshold in [*sorted(set(scores)), np.inf]
    ]
    below = max((one for one in rates if one[0] <= one[1]), key=lambda one: one[0])
    above = min((one for one in rates if one[0] >= one[1]), key=lambda one: one[0])
    return max(below[0], above[1]), min(above[0], below[1])


def trials(seed: int, count: int = 60, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 3 == 0).astype(int)
    scores = rng.normal(labels * 1.5, 1.0)
    return labels, np.round(scores) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_equal_error_rate_lies_where_a_count_finds_it(seed, ties):
    labels, scores = trials(seed, ties=ties)
    low, high = counted(labels, scores)
    assert low - 1e-12 <= equal_error_rate(labels, scores) <= high + 1e-12


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_equal_error_rate_is_that_of_the_roc(seed, ties):
    metrics = pytest.importorskip("sklearn.metrics")
    from scipy.interpolate import interp1d
    from scipy.optimize import brentq

    labels, scores = trials(seed, ties=ties)
    false, true, _ = metrics.roc_curve(labels, scores)
    expected = brentq(lambda x: 1.0 - x - interp1d(false, true)(x), 0.0, 1.0)
    assert equal_error_rate(labels, scores) == pytest.approx(expected, abs=1e-9)


def test_known_rates():
    labels = np.array([1, 1, 0, 0])
    assert equal_error_rate(labels, np.array([4.0, 3.0, 2.0, 1.0])) == 0
    assert equal_error_rate(labels, np.array([1.0, 2.0, 3.0, 4.0])) == 1
    assert equal_error_rate(labels, np.zeros(4)) == 0.5
    assert equal_error_rate(labels, np.array([4.0, 1.0, 3.0, 0.0])) == 0.5


@pytest.mark.parametrize("ties", [False, True])
def test_the_interval_is_that_of_trials_drawn_anew_within_each_kind(ties, monkeypatch):
    labels, scores = trials(2, ties=ties)
    monkeypatch.setattr(asv, "DRAWS", 200)
    rng, rates = np.random.default_rng(asv.SEED), []
    of_kind = {kind: np.sort(scores[labels == kind])[::-1] for kind in (1, 0)}
    for _ in range(200):
        drawn = {kind: given[rng.integers(len(given), size=len(given))] for kind, given in of_kind.items()}
        ones = np.repeat([1, 0], [len(drawn[1]), len(drawn[0])])
        rates.append(equal_error_rate(ones, np.concatenate([drawn[1], drawn[0]])))
    found, backwards = (
        over_trials({"labels": list(labels[::step]), "scores": list(scores[::step])}) for step in (1, -1)
    )
    assert (found.low, found.high) == pytest.approx(np.percentile(rates, [2.5, 97.5]))
    assert found == backwards, "whatever the order of the trials"


def test_the_clips_come_in_one_order_whatever_lengths_were_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sv_voxceleb1, "_length", lambda path: path.stat().st_size)
    root = tmp_path / "wav"

    def add(speaker: str) -> None:
        (root / speaker / "video").mkdir(parents=True)
        (root / speaker / "video" / "00001.wav").write_bytes(b"x" * int(speaker[2:]))

    for speaker in ("id10", "id30"):
        add(speaker)
    sv_voxceleb1.clip_lengths(root)
    add("id20")
    expected = [(f"id{number}/video/00001.wav", number) for number in (10, 20, 30)]
    assert list(sv_voxceleb1.clip_lengths(root).items()) == expected, "one of three is new"
    (kept,) = (tmp_path / "cache").rglob("*.json")
    stored = json.loads(kept.read_text())
    kept.write_text(json.dumps(dict(reversed(stored.items()))))
    assert list(sv_voxceleb1.clip_lengths(root).items()) == expected, "all are known, in another order"
    kept.unlink()
    assert list(sv_voxceleb1.clip_lengths(root).items()) == expected, "none is known"


def test_the_interval_holds_the_rate_and_narrows_with_more_trials():
    widths = []
    for count in (60, 600):
        labels, scores = trials(1, count)
        found = over_trials({"labels": [str(one) for one in labels], "scores": list(scores)})
        assert found is not None and found.low < found.value < found.high
        assert found.value == equal_error_rate(labels, scores)
        widths.append(found.high - found.low)
    assert 2 < widths[0] / widths[1] < 5, "about the square root of ten"
    assert over_trials({"labels": ["1", "1"], "scores": [0.0, 1.0]}) is None


@pytest.fixture
def own(build, tmp_path, corpus_variables, monkeypatch):
    """A copy of the miniature corpus, with a cache of its own; builds the expert on it."""
    root = Path(shutil.copytree(corpus_variables / "voxceleb1", tmp_path / "voxceleb1"))
    monkeypatch.setenv("VOXCELEB1", str(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(**datarc):
        config = task_config("asv", total_steps=2)
        config["downstream_expert"]["datarc"] |= datarc
        return build(make_args(tmp_path / "exp", downstream="sv_voxceleb1"), config)

    return root, make


def test_dev_is_scored_with_its_own_trials_and_the_labels_are_written(own, tmp_path):
    root, make = own
    make().train()
    result = json.loads((tmp_path / "exp" / "result.json").read_text())["metrics"]["dev"]["EER"]["value"]
    lines = [line.split() for line in (root / "dev_trials.txt").read_text().splitlines()]
    truth = [line.split() for line in (tmp_path / "exp" / "dev_truth.txt").read_text().splitlines()]
    scores = [line.split() for line in (tmp_path / "exp" / "dev_predict.txt").read_text().splitlines()]
    assert [label for _, label in truth] == [label for label, *_ in lines] and len(scores) == len(lines)
    assert [name for name, _ in truth] == [name for name, _ in scores]
    labels, given = np.array([int(label) for _, label in truth]), np.array([float(score) for _, score in scores])
    assert equal_error_rate(labels, given) == pytest.approx(result, abs=1e-6)


def test_speakers_of_dev_trials_are_not_trained_on(own, caplog):
    root, make = own
    with caplog.at_level("INFO"):
        expert = make().downstream.model
    in_trials = {
        Path(name).parts[0] for line in (root / "dev_trials.txt").read_text().splitlines() for name in line.split()[1:]
    }
    clips = {path.relative_to(root / "dev" / "wav") for path in (root / "dev" / "wav").rglob("*.wav")}
    trained = {Path(clip).relative_to(root / "dev" / "wav") for clip in expert.train_dataset.dataset}
    assert trained == {clip for clip in clips if clip.parts[0] not in in_trials}, "the others are"
    assert len(in_trials) >= 2 and len({clip.parts[0] for clip in trained}) >= 2
    assert f"{len(in_trials)} speakers of the dev trials" in caplog.text
    assert len(make(dev_meta_data=None).downstream.model.train_dataset) == len(clips), "without dev trials all are"


def test_dev_trials_of_all_speakers_leave_nothing_to_train_on(own):
    root, make = own
    by_speaker = [sorted(folder.rglob("*.wav")) for folder in sorted((root / "dev" / "wav").iterdir())]
    names = [[clip.relative_to(root / "dev" / "wav").as_posix() for clip in clips[:2]] for clips in by_speaker]
    lines = [f"1 {a} {b}\n0 {a} {names[number - 1][0]}\n" for number, (a, b) in enumerate(names)]
    (root / "dev_trials.txt").write_text("".join(lines))
    runner = make()
    assert "EER" in evaluate(runner.models, "dev", 1337).metrics, "it may be scored"
    with pytest.raises(
        DataError, match="dev_trials.txt has trials of all speakers .* list of trials of a few speakers"
    ):
        runner.train()


def test_lengths_are_kept_per_corpus_and_measured_anew_where_a_clip_changed(own, monkeypatch):
    root, _ = own
    first = sv_voxceleb1.clip_lengths(root / "dev" / "wav")
    clip = sorted(first)[3]
    samples, rate = soundfile.read(root / "dev" / "wav" / clip, dtype="float32")
    assert 0 < first[clip] <= len(samples)
    soundfile.write(root / "dev" / "wav" / clip, np.concatenate([samples, np.zeros(8000, np.float32), samples]), rate)
    measured, length = [], sv_voxceleb1._length
    monkeypatch.setattr(sv_voxceleb1, "_length", lambda path: measured.append(path) or length(path))
    again = sv_voxceleb1.clip_lengths(root / "dev" / "wav")
    assert [path.relative_to(root / "dev" / "wav").as_posix() for path in measured] == [clip]
    assert again[clip] > 1.5 * first[clip] and {n: again[n] for n in first if n != clip} == {
        n: first[n] for n in first if n != clip
    }
    assert set(sv_voxceleb1.clip_lengths(root / "test" / "wav")).isdisjoint(first) or len(measured) > 1
    other = sorted(first)[4]  # another content of the same size
    samples, rate = soundfile.read(root / "dev" / "wav" / other, dtype="float32")
    soundfile.write(
        root / "dev" / "wav" / other, np.where(np.arange(len(samples)) < len(samples) // 2, samples, 0), rate
    )
    assert sv_voxceleb1.clip_lengths(root / "dev" / "wav")[other] < first[other]


def test_scores_that_are_not_numbers_have_no_rate():
    labels = np.array([1, 1, 0, 0])
    assert np.isnan(equal_error_rate(labels, np.full(4, np.nan)))
    assert np.isnan(equal_error_rate(labels, np.array([0.9, np.nan, 0.1, 0.2])))


def test_short_clips_are_not_trained_on(own):
    _, make = own
    whole = make(dev_meta_data=None).downstream.model.train_dataset
    lengths = sorted(sv_voxceleb1.clip_lengths(Path(whole.roots[0])).values())
    middle = lengths[len(lengths) // 2]
    part = make(dev_meta_data=None, vad_config={"min_sec": middle}).downstream.model.train_dataset
    assert len(part) == sum(length > middle for length in lengths) < len(whole)
    assert part.speaker_num == whole.speaker_num == 10, "all speakers of the folder have an output"


def test_without_a_dev_list_there_is_no_dev(own):
    _, make = own
    runner = make(dev_meta_data=None)
    with pytest.raises(DataError, match="split 'dev' is empty"):
        runner.train()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1 a.wav\n", "line 1 must be '<0|1> CLIP CLIP', got '1 a.wav'"),
        ("2 a.wav b.wav\n", "line 1 must be"),
        ("1 nobody/video/00001.wav nobody/video/00001.wav\n", "lists nobody/video/00001.wav, which is not below"),
        (None, "no such list of trials: .*veri_test2.txt.*VOXCELEB1_TRIALS"),
        ("same", r"needs trials of one speaker \(1\) and of two \(0\)"),
    ],
)
def test_a_list_of_trials_that_does_not_fit_is_refused(own, lines, message):
    root, make = own
    path = root / "veri_test2.txt"
    kept = [line for line in path.read_text().splitlines(keepends=True) if line.startswith("1")]
    path.unlink()
    if lines is not None:
        path.write_text("".join(kept) if lines == "same" else lines)
    with pytest.raises(DataError, match=message):
        make()


def test_of_a_part_of_a_split_the_trials_in_it_count(own):
    _, make = own
    models = make().models
    assert np.isnan(evaluate(models, "dev", 1337, ratio=1e-9).metrics["EER"]), "one clip makes no trial"
    part, whole = (evaluate(models, "dev", 1337, ratio=ratio) for ratio in (0.7, 1.0))
    assert 0 <= part.metrics["EER"] <= 1 and set(part.intervals) == set(whole.intervals) == {"EER"}
