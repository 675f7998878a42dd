"""Who trains how far in a race, and that it is resumed where it was interrupted."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tasks import named
from s3prl_ext.training.racing.candidates import Candidate, candidates_of, shares_masks
from s3prl_ext.training.racing.early_stop import EarlyStopConfig
from s3prl_ext.training.racing.race import Race
from tests.support import reference

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
    return Race(config, ENTRANTS, total, RunFolder(folder), named("ks"), track.advance)


def test_the_best_goes_on_and_steps_add_up(tmp_path):
    track = Track(lambda density, step: {0.1: 0.3, 0.01: 0.5, 0.001: 0.4}[density])
    run = race(EarlyStopConfig(ratio=0.1), track, tmp_path)
    assert run.choose().name == "density=0.01"
    assert track.at == {"density=0.1": 10, "density=0.01": 10, "density=0.001": 10}
    record = json.loads((tmp_path / "race" / "race.json").read_text())
    assert record["chosen"] == "density=0.01" and record["metric"] == "acc" and record["cut"] == 10
    assert record["steps_of_all_candidates"] == EarlyStopConfig(ratio=0.1).budget(3, 100) == 120


def test_two_kept_run_to_the_end_and_the_better_wins(tmp_path):
    track = Track(lambda density, step: {0.1: 0.3, 0.01: 0.5, 0.001: 0.4}[density] if step < 100 else 1 - density)
    config = EarlyStopConfig(ratio=0.2, keep=2)
    assert race(config, track, tmp_path).choose().name == "density=0.001"
    assert track.at == {"density=0.1": 20, "density=0.01": 100, "density=0.001": 100}
    assert track.steps == config.budget(3, 100) == 220
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
    race(EarlyStopConfig(ratio=0.5, patience=5), changing, tmp_path / "never").choose()
    assert set(changing.at.values()) == {100}


def test_patience_asks_who_leads_and_not_in_which_order(tmp_path):
    kept = (0.1, 0.01)
    track = Track(lambda density, step: (density in kept) * (1 + (density == kept[step // 10 % 2])))
    assert race(EarlyStopConfig(ratio=0.1, keep=2, patience=3), track, tmp_path).choose().density in kept
    assert sorted(track.at.values()) == [30, 100, 100], "both led in all three comparisons, in turns"


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
    from s3prl_ext.training.racing.candidate_runs import read_record

    (tmp_path / "race").mkdir()
    assert read_record(RunFolder(tmp_path)) is None
    (tmp_path / "race" / "race.json").write_text(text)
    with pytest.raises(DataError, match=r"race\.json is corrupt \(.*\): restore it from a copy, or delete it"):
        read_record(RunFolder(tmp_path))


# -- successive halving ----------------------------------------------------------------------------------------------


def curves_of(count: int, steps: int, rng: random.Random) -> dict[str, list[float]]:
    """Return an accuracy for each candidate and step, of few values so that there are ties, some of them NaN to the end."""
    curves = {}
    for number in range(count):
        diverges = rng.choice([math.inf] * 4 + [rng.randrange(1, steps)])
        curves[f"lr={number + 1}"] = [
            math.nan if step >= diverges else rng.choice([0.1, 0.2, 0.3, 0.4]) for step in range(1, steps + 1)
        ]
    return curves


def halve(candidates: list[Candidate], rungs, eta, total, curves, folder: Path):
    """Race on recorded curves; return the winner, what was compared at each rung, and the steps that were trained."""
    at = dict.fromkeys(curves, 0)

    def advance(candidate, _, step, label):
        at[candidate.name] = step
        return {"acc": curves[candidate.name][step - 1]}

    config = EarlyStopConfig(rungs=rungs, eta=eta)
    winner = Race(config, candidates, total, RunFolder(folder), named("ks"), advance).choose()
    return winner.name, json.loads((folder / "race" / "race.json").read_text()), at


def test_survivors_equal_those_of_a_loop_over_the_recorded_curves(tmp_path):
    rng = random.Random(0)
    for trial in range(40):
        count, total = rng.randint(2, 12), 20
        rungs, eta = tuple(sorted(rng.sample(range(1, total), rng.randint(1, 4)))), rng.choice([1.2, 1.5, 2, 3, 4])
        candidates = candidates_of({"method": "full", "lr": [number + 1 for number in range(count)]})
        curves = curves_of(count, total, rng)
        if all(math.isnan(curve[rungs[0] - 1]) for curve in curves.values()):
            continue
        left, rounds = reference.successive_halving(curves, rungs, eta, total)
        if not left:
            with pytest.raises(DataError, match="NaN"):
                halve(candidates, rungs, eta, total, curves, tmp_path / str(trial))
            continue
        winner, record, at = halve(candidates, rungs, eta, total, curves, tmp_path / str(trial))
        assert winner == record["chosen"] == left[0]
        assert [(one["step"], set(one["compared"])) for one in record["comparisons"]] == rounds
        assert record["cut"] == rounds[-1][0]
        for name, step in at.items():
            assert step == max(step for step, compared in rounds if name in compared), "nobody trains without need"


def test_a_race_over_rungs_costs_what_is_announced(tmp_path, caplog):
    caplog.set_level("INFO")
    candidates = candidates_of({"method": "full", "lr": [number + 1 for number in range(9)]})
    curves = {one.name: [float(one.tuning["lr"])] * 81 for one in candidates}
    winner, record, _ = halve(candidates, (3, 9), 3, 81, curves, tmp_path)
    config = EarlyStopConfig(rungs=(3, 9), eta=3)
    assert winner == "lr=9" and record["steps_of_all_candidates"] == config.budget(9, 81) == 9 * 3 + 3 * 6 + 72
    assert "9 to step 3, 3 to step 9, 1 to step 81; 117 optimizer steps in all" in caplog.text
    assert "rung 2 of 2, step 9: lr=7 acc 7, lr=8 acc 8, lr=9 acc 9; lr=9 leads" in caplog.text
    assert record["comparisons"][0]["best"] == ["lr=9", "lr=8", "lr=7"] and record["rungs"] == [3, 9]
    assert EarlyStopConfig(rungs=(1,), eta=1.1).survivors(11) == 10, "11 / 1.1 in floats is above 10"


def test_of_equal_scores_the_first_in_the_file_goes_on_and_nan_never(tmp_path):
    candidates = candidates_of({"method": "child", "density": [0.1, 0.01, 0.001]})
    names = [one.name for one in candidates]
    assert halve(candidates, (1,), 3, 2, {name: [0.5, 0.5] for name in names}, tmp_path / "a")[0] == "density=0.1"
    curves = {name: [math.nan] * 3 for name in names} | {"density=0.001": [0.0] * 3}
    winner, record, at = halve(candidates, (1, 2), 1.5, 3, curves, tmp_path / "b")
    assert winner == "density=0.001" and at["density=0.001"] == 1, "two would go on, but only one is left"
    assert record["comparisons"] == [{"step": 1, "compared": names, "best": ["density=0.001"]}]


@pytest.mark.parametrize("done", range(0, 8))
def test_a_race_interrupted_at_any_rung_repeats_nothing(tmp_path, done):
    track = Track(lambda density, step: 1 - density if step < 9 else density)
    track.stop_after = done
    config = EarlyStopConfig(rungs=(3, 6), eta=1.5)
    if done < 7:  # 3 to the first rung, 2 to the second, 2 to the end
        with pytest.raises(KeyboardInterrupt):
            race(config, track, tmp_path, total=9).choose()
    track.stop_after = math.inf
    assert race(config, track, tmp_path, total=9).choose().name == "density=0.01"
    assert track.steps == 3 * 3 + 2 * 3 + 2 * 3 == config.budget(3, 9)
    with pytest.raises(DataError, match=r"rungs: \[3, 6\], but now it is \[3, 7\]"):
        race(EarlyStopConfig(rungs=(3, 7), eta=1.5), track, tmp_path, total=9)


@pytest.mark.parametrize(
    "more",
    [
        {"mask": "snip"}, {"budget": "layer"}, {"unit": "row"}, {"eligible": ["*.fc1.weight"]}, {"fisher": {"max_batches": 2}},
        {"lottery": {"steps": 5}}, {"redraw": True}, {"gradual": {"start": 0.5}},
    ],
    ids=lambda more: next(iter(more)),
)  # fmt: skip
def test_masks_are_shared_by_candidates_that_choose_alike_and_by_no_others(more):
    section = {"method": "child", "mask": "fisher", "density": 0.1}
    assert shares_masks(section, section | {"density": 0.2, "lr": 1.0, "reselect_every": 5, "clip_scope": "all"})
    assert not shares_masks(section, section | more)
