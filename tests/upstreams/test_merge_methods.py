"""Methods and the alignment of heads through `merged_attention`, a sweep's arms and ``s3prl-ext merge``."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.commands import merge
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.aligner import Aligner
from s3prl_ext.merging.alignment import align_heads, permute_heads
from s3prl_ext.merging.methods import parse_method
from s3prl_ext.merging.slerp import slerp
from s3prl_ext.sweeps.grid import Arm
from s3prl_ext.sweeps.weights import ArmWeights
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.merged_attention.record import check_merge_record
from tests.support import factories

WEIGHTS = [Slot(layer, projection) for layer in (0, 1) for projection in PROJECTIONS]


@pytest.fixture
def build(folders, tmp_path):
    def build(**content):
        source = {"source": {"model": folders["source"]}}
        content = {"target": {"model": folders["target"]}, "lambda": 0.25} | source | content
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
        return merged_attention(model_config=str(tmp_path / "my.yaml"))

    return build


def with_base(folders, name="ties"):
    return {"method": name, "base": {"model": folders["base"]}}


def test_slerp_and_task_vectors_change_the_chosen_matrices_only(build, folders):
    target, source, base = (read_attention(folders[name]) for name in ("target", "source", "base"))
    after = extract(build(method="slerp", layers=[1]).state_dict())
    for slot, tensor in after.items():
        expected = slerp(target[slot], source[slot], 0.25) if slot in WEIGHTS and slot.layer == 1 else target[slot]
        assert torch.equal(tensor, expected)
    after = extract(build(**with_base(folders, "task_arithmetic")).state_dict())
    for slot in WEIGHTS:
        expected = target[slot] + 0.25 * (source[slot] - base[slot])
        torch.testing.assert_close(after[slot], expected, rtol=1e-6, atol=1e-7)


def test_lambda_zero_is_the_target_whatever_the_method(build, folders):
    target = read_attention(folders["target"])
    for content in ({"method": "slerp"}, with_base(folders), with_base(folders, "dare"), {"align": "heads"}):
        after = extract(build(**{"lambda": 0} | content).state_dict())
        assert all(torch.equal(after[slot], target[slot]) for slot in target)


def test_heads_of_source_noise_and_base_are_brought_into_the_target_s_order(build, folders):
    target, source, base = (read_attention(folders[name]) for name in ("target", "source", "base"))
    aligned, orders = align_heads(target, source, 4, PROJECTIONS)
    upstream = build(align="heads")
    after = extract(upstream.state_dict())
    assert all(torch.equal(after[slot], torch.lerp(target[slot], aligned[slot], 0.25)) for slot in WEIGHTS)
    assert upstream.merge_record["sources"][0]["align"] == {
        "kind": "heads",
        "heads": 4,
        "orders": list(orders.values()),
    }
    unaligned = extract(build().state_dict())
    assert not all(torch.equal(after[slot], unaligned[slot]) for slot in WEIGHTS)

    noise = extract(build(noise="target", **{"lambda": 1}).state_dict())
    ordered = extract(build(noise="target", align="heads", **{"lambda": 1}).state_dict())
    expected, _ = align_heads(target, noise, 4, PROJECTIONS)
    assert all(torch.equal(ordered[slot], expected[slot]) for slot in WEIGHTS)

    vectors = extract(build(align="heads", **with_base(folders, "task_arithmetic")).state_dict())
    for slot in WEIGHTS:
        moved = permute_heads(source[slot] - base[slot], orders[slot.layer])
        torch.testing.assert_close(vectors[slot], target[slot] + 0.25 * moved, rtol=1e-6, atol=1e-7)


def test_the_number_of_heads_is_read_given_or_asked_for(build, folders, tmp_path):
    with pytest.raises(UsageError, match="the target has 4 and the source has 2: heads are paired one to one"):
        build(align="heads", source={"model": folders["two_heads"]})
    with pytest.raises(
        UsageError, match="the target has 4 and the source has 4 and align.heads is 2: heads are paired"
    ):
        build(align={"kind": "heads", "heads": 2})
    built = {"upstream": "hubert_local", "ckpt": str(factories.hubert_local_ckpt(tmp_path / "hubert.pt", heads=4))}
    for content in ({"source": None, "noise": "standard"}, {}):
        record = build(target=built, align="heads", **content).merge_record
        assert record["sources"][0]["align"]["heads"] == 4
    with pytest.raises(UsageError, match="the target has 4 and the source has 2: heads are paired one to one"):
        build(target=built, align="heads", source={"model": folders["two_heads"]})
    with pytest.raises(UsageError, match="the target has 4 and align.heads is 5: heads are paired"):
        build(target=built, source=None, noise="standard", align={"kind": "heads", "heads": 5})


def test_a_model_that_does_not_say_its_heads_is_asked_for_them(folders, tmp_path):
    checkpoint = factories.hubert_local_ckpt(tmp_path / "hubert.pt", heads=4)
    target = {"upstream": "hubert_local", "ckpt": str(checkpoint)}
    content = {"target": target, "source": {"model": folders["source"]}, "lambda": 0.25, "align": "heads"}
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match=r"the target does not say how many heads it has: give align: \{kind: heads"):
        merge.main(["-g", str(file), "--out", str(tmp_path / "out")])
    file.write_text(yaml.safe_dump(content | {"align": {"kind": "heads", "heads": 4}}))
    merge.main(["-g", str(file), "--out", str(tmp_path / "out")])


def test_a_base_has_the_depth_of_its_source(build, folders, tmp_path):
    deep = factories.bert_folder(tmp_path / "deep", layers=4, heads=4)
    with pytest.raises(
        UsageError, match="has 4 layers and source .* 2: name the model that the source was trained from"
    ):
        build(method="ties", base={"model": str(deep)}, layer_map={0: 0, 1: 1})


SOURCE, ONE, NOISE = Arm((0, 1), "none", 0, 0.25), Arm((0,), "none", 0, 1.0), Arm((1,), "target", 2, 0.5)


@pytest.mark.parametrize(
    ("content", "arm"),
    [
        *(({"method": "slerp"}, arm) for arm in (SOURCE, ONE, NOISE)),
        *(({"align": "heads"}, arm) for arm in (SOURCE, ONE, NOISE)),
        *(({"method": method}, arm) for method in ("ties", "dare") for arm in (SOURCE, ONE)),
        *(({"method": "ties", "align": "heads"}, arm) for arm in (SOURCE, ONE)),
    ],
)
def test_an_arm_of_a_sweep_equals_the_merged_upstream_bit_for_bit(content, arm, build, folders):
    if content.get("method") in ("ties", "dare"):
        content = content | with_base(folders, content["method"])
    source, base = read_attention(folders["source"]), read_attention(folders["base"])
    if "base" in content and "align" in content:  # a sweep gets the base in the order of the source's aligned heads
        _, orders = align_heads(read_attention(folders["target"]), source, 4, PROJECTIONS)
        base = {slot: permute_heads(tensor, orders[slot.layer]) for slot, tensor in base.items()}
    aligner = Aligner(heads=(4, 4), pair=True) if "align" in content else None
    upstream = build(**{"lambda": 0})
    method = parse_method(content.get("method", "linear"))
    weights = ArmWeights(
        extract(upstream.state_dict()), source, [0, 1], PROJECTIONS, method=method, base=base, aligner=aligner
    )
    weights.apply(Arm((0, 1), "standard" if "base" not in content else "none", 0, 0.9))
    weights.apply(arm)
    noise = {} if arm.noise == "none" else {"noise": {"kind": arm.noise, "draw": arm.draw}}
    expected = build(**content, **noise, layers=list(arm.layers), **{"lambda": arm.lambda_}).state_dict()
    for name, tensor in upstream.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_written_model_equals_the_upstream_and_its_card_says_how(build, folders, tmp_path, capsys):
    content = with_base(folders) | {"align": "heads"}
    upstream = build(**content)
    out = tmp_path / "merged"
    assert merge.main(["-g", str(tmp_path / "my.yaml"), "--out", str(out)]) == 0
    written, built = read_attention(out), extract(upstream.state_dict())
    assert all(torch.equal(written[slot], built[slot]) for slot in written)
    assert "elected sign (TIES)" in (out / "README.md").read_text(encoding="utf-8")
    record = json.loads((out / "merge.json").read_text())["merge"]
    assert record["method"] == {"name": "ties", "density": 0.2, "seed": None}
    check_merge_record(record, upstream.merge_record)


def changed(record, heads):
    """Return a copy of a record with another number of heads."""
    copy = json.loads(json.dumps(record))
    copy["sources"][0]["align"]["heads"] = heads
    return copy


def test_records_tell_methods_bases_and_alignments_apart(build, folders):
    plain, sphere = build().merge_record, build(method="slerp").merge_record
    assert "method" not in plain and "align" not in plain["sources"][0]
    ties, dare = build(**with_base(folders)).merge_record, build(**with_base(folders, "dare")).merge_record
    other = build(method="ties", base={"model": folders["two_heads"]}).merge_record
    aligned = build(align="heads").merge_record
    for stored, current, message in (
        (plain, sphere, "method: {name: linear}, but now it is method: {name: slerp}"),
        (ties, dare, "method: {name: ties, density: 0.2}, but now it is method: {name: dare, density: 0.1, seed: 0}"),
        (ties, other, "another base of the source"),
        (plain, aligned, "without align of the source, but now it is with align"),
        (aligned, changed(aligned, 2), "other heads of the source aligned: 4 heads, but now 2"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            check_merge_record(stored, current)
        assert "\n" not in str(caught.value)
        check_merge_record(current, current)
