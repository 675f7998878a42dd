"""Who trains how far in a race, and that it is resumed where it was interrupted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training.candidates import candidates_of
from s3prl_ext.training.racing import EarlyStopConfig, Race, budget

ENTRANTS = candidates_of({"method": "child", "density": [0.1, 0.01, 0.001]})


class Track:
    """Candidates whose accuracy at each step is known; counts the steps that each is trained."""

    def __init__(self, accuracy):
        self.accuracy = accuracy
        self.at = {}
        self.steps = 0
        self.stop_after = math.inf

    def advance(self, candidate, folder: Path, step: int, label: str) -> dict[str, float]:
        if self.stop_after <= 0:
            raise KeyboardInterrupt
        self.stop_after -= 1
        assert folder.path.is_dir() and folder.path.name == candidate.name and candidate.name in label
        self.steps += step - self.at.get(candidate.name, 0)
        self.at[candidate.name] = step
        return {"acc": self.accuracy(candidate.density, step), "loss": 1.0}


def race(config: EarlyStopConfig, track: Track, folder: Path, total: int = 100) -> Race:
    return Race(config, ENTRANTS, total, RunFolder(folder), "speech_commands", track.advance)


def test_the_best_goes_on_and_steps_add_up(tmp_path):
    track = Track(lambda density, step: {0.1: 0.3, 0.01: 0.5, 0.001: 0.4}[density])
    run = race(EarlyStopConfig(ratio=0.1), track, tmp_path)
    assert run.choose().name == "density=0.01"
    assert track.at == {"density=0.1": 10, "density=0.01": 10, "density=0.001": 10}
    record = json.loads((tmp_path / "race" / "race.json").read_text())
    assert record["chosen"] == "density=0.01" and record["metric"] == "acc" and record["cut"] == 10
    assert record["steps_of_all_candidates"] == budget(EarlyStopConfig(ratio=0.1), 3, 100) == 120


def test_two_kept_run_to_the_end_and_the_better_wins(tmp_path):
    track = Track(lambda density, step: {0.1: 0.3, 0.01: 0.5, 0.001: 0.4}[density] if step < 100 else 1 - density)
    config = EarlyStopConfig(ratio=0.2, keep=2)
    assert race(config, track, tmp_path).choose().name == "density=0.001"
    assert track.at == {"density=0.1": 20, "density=0.01": 100, "density=0.001": 100}
    assert track.steps == budget(config, 3, 100) == 220
    assert json.loads((tmp_path / "race" / "race.json").read_text())["steps_of_all_candidates"] == 220


def test_ties_go_to_the_smaller_density_and_nan_never_wins(tmp_path):
    assert race(EarlyStopConfig(), Track(lambda d, s: 0.5), tmp_path / "a").choose().name == "density=0.001"
    track = Track(lambda d, s: math.nan if d == 0.1 else 0.0)
    assert race(EarlyStopConfig(), track, tmp_path / "b").choose().name == "density=0.001"
    with pytest.raises(DataError, match="NaN"):
        race(EarlyStopConfig(), Track(lambda d, s: math.nan), tmp_path / "c").choose()


def test_several_evaluations_are_averaged(tmp_path):
    # alone at the cut 0.1 would win; over four evaluations 0.01 does
    table = {0.1: [0, 0, 0, 1.0], 0.01: [0.6, 0.6, 0.6, 0.6], 0.001: [0, 0, 0, 0]}
    track = Track(lambda density, step: table[density][step // 10 - 1])
    assert race(EarlyStopConfig(ratio=0.4, evaluations=4), track, tmp_path).choose().name == "density=0.01"
    assert track.steps == 120


def test_patience_waits_for_a_steady_leader(tmp_path, caplog):
    caplog.set_level("INFO")
    leader = {10: 0.1, 20: 0.01, 30: 0.001, 40: 0.001}
    track = Track(lambda density, step: float(leader[step] == density))
    assert race(EarlyStopConfig(patience=2), track, tmp_path).choose().name == "density=0.001"
    assert set(track.at.values()) == {40}
    assert "140 to 300 optimizer steps in all" in caplog.text  # two comparisons at least, or all candidates to the end
    changing = Track(lambda density, step: float(int(step / 10) % 2 == (density > 0.05)))
    race(EarlyStopConfig(ratio=0.5, patience=5), changing, tmp_path / "never")._leaders(50)
    assert set(changing.at.values()) == {100}


@pytest.mark.parametrize("done", range(1, 6))
def test_an_interrupted_race_repeats_nothing(tmp_path, done):
    track = Track(lambda density, step: 1 - density if step < 100 else density)
    track.stop_after = done
    config = EarlyStopConfig(ratio=0.1, keep=2, evaluations=1)
    if done < 5:
        with pytest.raises(KeyboardInterrupt):
            race(config, track, tmp_path).choose()
    track.stop_after = math.inf
    assert race(config, track, tmp_path).choose().name == "density=0.01"
    assert track.steps == 3 * 10 + 2 * 90
    before = track.steps
    assert race(config, track, tmp_path).choose().name == "density=0.01"  # a finished race is only read
    assert track.steps == before


def test_another_race_in_the_folder_is_refused(tmp_path):
    race(EarlyStopConfig(), Track(lambda d, s: 0.5), tmp_path).choose()
    with pytest.raises(DataError, match="total_steps: 100, but now it is 200"):
        race(EarlyStopConfig(), Track(lambda d, s: 0.5), tmp_path, total=200)
    (tmp_path / "race" / "race.json").write_text("{")
    with pytest.raises(DataError, match="is not readable"):
        race(EarlyStopConfig(), Track(lambda d, s: 0.5), tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", '{"scores": 3}', '{"scores": {"a": {"2": {}}}, "metric": "acc"}', '{"scores": {}, "metric": "acc"}'],
)
def test_a_damaged_record_is_one_sentence(tmp_path, text):
    from s3prl_ext.training.candidate_runs import read_record

    (tmp_path / "race").mkdir()
    assert read_record(RunFolder(tmp_path)) is None
    (tmp_path / "race" / "race.json").write_text(text)
    with pytest.raises(DataError, match=r"race\.json is corrupt \(.*\): restore it from a copy, or delete it"):
        read_record(RunFolder(tmp_path))
