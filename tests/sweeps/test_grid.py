"""Grids: flags and files, presets, groups and arms."""

from __future__ import annotations

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.layer_sets import parse_layers
from s3prl_ext.sweeps.grid import BASELINE, Arm, arms_in_order, groups_of, read_grid
from s3prl_ext.sweeps.presets import PRESETS


def groups(file=None, depth=6, similar=lambda by, k: tuple(range(k)), **flags):
    grid = read_grid(file or {}, flags, False, "the grid")
    return groups_of(grid, lambda layers: parse_layers(layers, depth), similar)


def test_layers_and_noise_are_crossed_and_lambda_zero_is_the_target():
    found = groups(**{"lambda": [0.1, 0, 0.05, 0.1], "layers": ["all", "0-2"], "noise": ["none", "source"], "draws": 3})
    assert [(g.name, g.noise, g.draws) for g in found] == [
        ("all", "none", 1), ("all", "source", 3), ("0-2", "none", 1), ("0-2", "source", 3),
    ]  # fmt: skip
    assert all(group.lambdas == (0.05, 0.1) for group in found)
    assert found[0].layers == (0, 1, 2, 3, 4, 5) and found[2].layers == (0, 1, 2)
    arms = arms_in_order(found)
    assert arms[0] is BASELINE and len(arms) == len(set(arms)) == 1 + 2 * 2 + 2 * 2 * 3
    draws = [(arm.noise, arm.draw) for arm in arms[1:]]
    assert draws == sorted(draws, key=lambda d: (d[0] != "none", d[1])), "the arms of a draw must follow each other"


def test_equal_arms_of_two_groups_are_scored_once():
    found = groups({"lambda": [0.1], "layers": ["all"], "arms": {"mine": {"lambda": 0.1, "layers": "0-5"}}})
    assert len(found) == 2 and len(arms_in_order(found)) == 2


def test_two_groups_of_one_name_are_refused():
    def grid(**arms):
        return groups({"lambda": [0.2], "layers": ["all"], "arms": arms})

    with pytest.raises(UsageError, match="two parts of the grid with noise none have one name, 'all': give an arm"):
        grid(all={"layers": 1, "lambda": 0.9})
    with pytest.raises(UsageError, match="have one name, 'best block' and 'best_block'"):  # of one folder
        grid(**{"best block": {"layers": 0, "lambda": 0.4}, "best_block": {"layers": 1, "lambda": 0.4}})
    assert len(grid(all={"lambda": 0.2})) == 1, "the same arms twice"
    assert len(grid(all={"lambda": 0.9, "noise": "target"})) == 2, "another kind of matrices"


def test_named_arms_have_their_own_settings():
    arms = {"block": {"lambda": 0.25, "layers": "3-5"}, "noise": {"lambda": [0.1, 0.2], "noise": "target", "draws": 2}}
    block, noise = groups({"arms": arms})
    assert (block.name, block.layers, block.lambdas, block.draws) == ("block", (3, 4, 5), (0.25,), 1)
    assert (noise.name, noise.noise, noise.lambdas, noise.draws) == ("noise", "target", (0.1, 0.2), 2)


def test_a_text_in_a_file_is_one_set_of_layers_as_in_a_merge():
    (block,) = groups({"arms": {"block": {"layers": "0-2,5", "lambda": 0.1}}})
    assert (block.name, block.layers) == ("block", (0, 1, 2, 5))
    (whole,) = groups({"layers": "0-2,5", "lambda": 0.1})
    assert whole.layers == (0, 1, 2, 5)


def test_noise_of_the_configuration_is_merged_where_the_grid_does_not_say():
    file = {"lambda": 0.1, "arms": {"block": {"layers": "0-2", "lambda": 0.1}}}
    for flags, kind in (({}, "target"), ({"noise": ["none"]}, "none")):
        grid = read_grid(file, flags, False, "the grid", "target")
        assert grid["noise"] == [kind] and grid["arms"]["block"]["noise"] == ["target"]


def test_flags_win_over_the_file():
    (group,) = groups({"lambda": [0.5], "layers": ["all"]}, layers=["2"])
    assert group.layers == (2,) and group.lambdas == (0.5,)


def test_most_similar_layers():
    found = groups(**{"lambda": [0.1], "by": ["swd", "euclidean"], "top_k": [2, 4]})
    assert [(g.name, g.layers) for g in found] == [
        ("swd top-2", (0, 1)), ("swd top-4", (0, 1, 2, 3)), ("euclidean top-2", (0, 1)), ("euclidean top-4", (0, 1, 2, 3)),
    ]  # fmt: skip


def test_presets_are_the_papers_grids():
    table1 = groups(PRESETS["table1-asr"], depth=24)
    assert [g.noise for g in table1] == ["none", "source", "target", "standard"]
    assert table1[0].lambdas == (0.05, 0.1, 0.15, 0.2, 0.25) and len(table1[0].layers) == 24
    assert all(g.draws == 5 for g in table1[1:])
    assert groups(PRESETS["table1-esc50"], depth=12)[0].lambdas == (0.1, 0.15, 0.2, 0.25, 0.3)
    assert [g.name for g in groups(PRESETS["table2-24"], depth=24)] == ["0-7", "4-11", "8-15", "12-19", "16-23"]
    assert [g.name for g in groups(PRESETS["table2-12"], depth=12)] == ["0-3", "4-7", "8-11", "0-7", "4-11"]
    assert len(groups(PRESETS["table3-vctk"], depth=24)) == 9


def test_keys_tell_arms_apart_and_stay():
    arm = Arm((0, 1), "none", 0, 0.1)
    others = [
        Arm((0,), "none", 0, 0.1),
        Arm((0, 1), "source", 0, 0.1),
        Arm((0, 1), "none", 1, 0.1),
        Arm((0, 1), "none", 0, 0.2),
    ]
    assert len({arm.key, *(other.key for other in others)}) == 5
    assert Arm((0, 1), "none", 0, 0.1).key == arm.key == "ef28c87a7843a292"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "empty grid"),
        ({"lambda": []}, "empty grid"),
        ({"lambda": [0]}, "the only lambda of the grid is 0"),
        ({"lambda": [1.5]}, "must be between 0"),
        ({"lambda": [float("nan")]}, "must be a finite number"),
        ({"lambda": ["ten"]}, "must be a number"),
        ({"lambda": [0.1], "layers": ["4-9"]}, "layer 9 is out of range"),
        ({"lambda": [0.1], "layers": ["first"]}, "neither a layer index nor a range"),
        ({"lambda": [0.1], "layers": ["none"]}, "names no layer"),
        ({"lambda": [0.1], "noise": ["gauss"]}, "unknown noise 'gauss'"),
        ({"lambda": [0.1], "draws": 0}, "draws must be a whole number"),
        ({"lambda": [0.1], "by": ["swd"]}, "by and top_k belong together"),
        ({"lambda": [0.1], "by": ["cosine"], "top_k": [2]}, "unknown metric (by) 'cosine'"),
        ({"lambda": [0.1], "laers": ["all"]}, "did you mean 'layers'?"),
        ({"arms": {"mine": {"layers": "0-2"}}}, "must be a mapping with a lambda"),
        ({"arms": [0.1]}, "arms must map names to settings"),
    ],
)
def test_bad_grids(grid, message):
    with pytest.raises(UsageError) as error:
        groups(grid)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
