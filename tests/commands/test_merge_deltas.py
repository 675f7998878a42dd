"""``s3prl-ext merge --deltas``: several tuned tasks in one upstream, by hand-computed entries, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import soundfile
import torch

from s3prl_ext.child_tuning import delta as delta_files
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.commands import merge
from s3prl_ext.deltas.merging import TunedWeights, merge_tasks, moments_read
from s3prl_ext.deltas.switch import TaskSwitch
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.methods import MethodConfig
from s3prl_ext.merging.task_vectors import ties
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.models.linear_inputs import LinearInputs
from s3prl_ext.training.selection.shared_scores import SharedScores
from s3prl_ext.training.statistics import StateChanged
from s3prl_ext.training.tuned_upstream import TunedUpstream
from s3prl_ext.training.upstream_settings import KEY
from tests.support import tuned as made

CHILD = {"method": "child", "mask": "fisher", "density": 0.3}
LORA = {"method": "lora", "rank": 2}


@pytest.fixture
def model(tmp_path):
    return made.write_model("hubert_local", tmp_path)


@pytest.fixture
def task(model, tmp_path):
    """Write the delta of a task tuned by hand; return its folder and the tuned state."""

    def task(name, seed=0, tuning=CHILD, ckpt=model, **about):
        upstream = made.build("hubert_local", ckpt)
        tuned = made.tune(upstream, 0.3, seed) if tuning is CHILD else made.tune_adapter(upstream, tuning, seed)
        info = made.about("hubert_local", ckpt, tuning, **about)
        path = made.save_delta(tuned, info, tmp_path / "exp" / name / "delta.safetensors")
        return path.parent, TrainedTask.read(path).build().state_dict()

    return task


def run(*flags):
    return merge.main([str(flag) for flag in flags])


def merged_states(out, names):
    return [TrainedTask.read(out / name).build().state_dict() for name in names]


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_two_tasks_become_one_upstream_with_two_heads(method, task, model, tmp_path, capsys):
    (ks, first), (sid, second) = task("ks", 1), task("sid", 2)
    out = tmp_path / "merged"
    assert run("--deltas", ks, sid, "--lambda", "0.5,0.25", "--method", method, "--out", out) == 0
    base = made.build("hubert_local", model).state_dict()
    by_ks, by_sid = merged_states(out, ("ks", "sid"))
    changed = 0
    for name, tensor in base.items():
        deltas = [first[name] - tensor, second[name] - tensor]
        if method == "linear":
            expected = tensor + 0.5 * deltas[0] + 0.25 * deltas[1]
        else:
            expected = ties(tensor, deltas, [0.5, 0.25], 0.2)
        torch.testing.assert_close(by_ks[name], expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(by_ks[name], by_sid[name])
        untouched = (deltas[0] == 0) & (deltas[1] == 0)
        same = by_ks[name].view(torch.int32) == tensor.view(torch.int32) if tensor.is_floating_point() else untouched
        assert same[untouched].all()  # also of a zero with a sign
        changed += int((by_ks[name] != tensor).sum())
    record = json.loads((out / "merged_tasks.json").read_text())
    assert record["upstream_sha256"] == state_sha256(by_ks) and record["base_sha256"] == state_sha256(base)
    assert [row["lambda"] for row in record["merged"]] == [0.5, 0.25]
    delta = delta_files.load(out / "ks" / "delta.safetensors")
    assert len(delta) == changed and delta.info["tuning"] is None and "tuning" not in delta.info["config"]
    assert torch.equal(delta.task["Downstream"]["model.weight"], made.HEAD["Downstream"]["model.weight"])
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:2] == ["task", "lambda"] and [line.split()[0] for line in table[1:3]] == ["ks", "sid"]


def recordings(folder, count, seed):
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        soundfile.write(
            folder / f"{number}.wav", 0.1 * torch.randn(8000 + 500 * number, generator=generator).numpy(), 16000
        )
    return folder


def test_regmean_weighs_tasks_by_what_their_own_models_read(task, model, tmp_path):
    (ks, first), (sid, second) = task("ks", 1), task("sid", 2)
    audio = [recordings(tmp_path / "audio" / "ks", 3, 5), recordings(tmp_path / "audio" / "sid", 2, 6)]
    out = tmp_path / "merged"
    run("--deltas", ks, sid, "--method", "regmean", "--lambda", "0.5,0.25", "--audio", *audio, "--out", out)
    merged = merged_states(out, ("ks", "sid"))
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])
    base = made.build("hubert_local", model).state_dict()
    fc1 = "model.encoder.layers.1.fc1"
    grams = []
    for folder, files in zip((ks, sid), audio, strict=True):
        upstream, rows = TrainedTask.read(folder).build().eval(), []
        upstream.get_submodule(fc1).register_forward_pre_hook(
            lambda _, inputs, rows=rows: rows.append(inputs[0].reshape(-1, inputs[0].shape[-1]).double())
        )
        with torch.no_grad():
            for file in sorted(files.iterdir()):
                wav = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
                upstream([wav])
                frames = upstream.model.feature_extractor(wav[None]).shape[-1]  # an odd number is padded to an even one
                rows[-1] = rows[-1][:frames]
        x = torch.cat(rows)
        gram = x.T @ x / len(x)
        grams.append(0.9 * gram + 0.1 * torch.diag(torch.diagonal(gram)))
    changes = [(state[f"{fc1}.weight"] - base[f"{fc1}.weight"]).double() for state in (first, second)]
    left = 0.5 * changes[0] @ grams[0] + 0.25 * changes[1] @ grams[1]
    expected = base[f"{fc1}.weight"].double() + left @ torch.linalg.inv(0.5 * grams[0] + 0.25 * grams[1])
    torch.testing.assert_close(merged[0][f"{fc1}.weight"].double(), expected, rtol=1e-4, atol=1e-6)
    mean = base[f"{fc1}.bias"] + sum(
        share * (state[f"{fc1}.bias"] - base[f"{fc1}.bias"]) for share, state in ((2 / 3, first), (1 / 3, second))
    )
    torch.testing.assert_close(merged[0][f"{fc1}.bias"], mean)
    record = json.loads((out / "merged_tasks.json").read_text())
    assert record["method"] == {"name": "regmean", "shrink": 0.9, "seed": 0, "recordings": [3, 2]}
    run("--deltas", ks, "--method", "regmean", "--lambda", "0.3", "--audio", audio[0], "--out", tmp_path / "one")
    (alone,) = merged_states(tmp_path / "one", ("ks",))
    assert all(torch.allclose(alone[name], tensor, rtol=0, atol=1e-7) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --audio a folder of recordings for each of the 1 deltas"),
        (["--audio", "a", "b"], "give --audio a folder of recordings for each of the 1 deltas"),
        (["--audio", "EMPTY"], "contains no audio file"),
        (["--audio", "EMPTY", "--clips", "0"], "--clips must be"),
        (["--audio", "EMPTY", "--density", "0.1"], "--density belongs to ties and dare"),
    ],
)
def test_regmean_without_recordings_is_refused(flags, message, task, tmp_path):
    (tmp_path / "EMPTY").mkdir()
    flags = [tmp_path / flag if flag == "EMPTY" else flag for flag in flags]
    with pytest.raises((UsageError, DataError), match=message):
        run("--deltas", task("ks")[0], "--method", "regmean", "--lambda", "0.5", *flags, "--dry-run")


def test_recordings_belong_to_regmean(task, tmp_path):
    with pytest.raises(UsageError, match="--audio and --clips belong to --method regmean, but the method is ties"):
        run("--deltas", task("ks")[0], "--method", "ties", "--lambda", "1", "--audio", "x", "--clips", "3", "--dry-run")
    with pytest.raises(UsageError, match="--audio belong to --deltas"):
        run("--audio", "x", "--dry-run")


def save_scores(folder, task, upstream, scores, mask="fisher"):
    """Write what a run with --fisher_scores leaves."""
    facts = {
        "pass": {"mask": mask},
        "run": {"downstream": task, "upstream_feature_selection": "hidden_states"},
        "task file": made.CONFIG,
        "weights": [state_sha256(upstream)],
    }
    SharedScores(folder, facts).get(scores, lambda: scores)


def test_fisher_information_weighs_what_two_tasks_changed(task, model, tmp_path):
    (ks, first), (sid, second) = task("ks", 1), task("sid", 2, downstream="voxceleb1")
    upstream, folder = made.build("hubert_local", model), tmp_path / "scores"
    base = {name: tensor.clone() for name, tensor in upstream.state_dict().items()}
    eligible = {name: tensor for name, tensor in eligible_parameters(upstream).items() if "layers.1.fc1" not in name}
    scores = [
        {
            name: torch.rand(tensor.shape, generator=torch.Generator().manual_seed(n))
            for name, tensor in eligible.items()
        }
        for n in (3, 4)
    ]
    save_scores(folder, "speech_commands", base, scores[0])
    save_scores(folder, "speech_commands", base, scores[1], mask="snip")
    common = ["--deltas", ks, sid, "--method", "fisher", "--fisher_scores", folder, "--lambda", "0.5,0.25"]
    with pytest.raises(
        DataError, match="no Fisher information of sid on this upstream: train a child network with mask"
    ):
        run(*common, "--dry-run")
    save_scores(folder, "voxceleb1", base, scores[1])
    run(*common, "--out", tmp_path / "merged")
    (merged, _), differing = merged_states(tmp_path / "merged", ("ks", "sid")), 0
    for name, tensor in base.items():
        deltas = [first[name] - tensor, second[name] - tensor]
        one, other = (0.5 * scores[0][name], 0.25 * scores[1][name]) if name in eligible else (2.0, 1.0)
        expected = tensor + (one * deltas[0] + other * deltas[1]) / (one + other)
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-7)
        untouched = (deltas[0] == 0) & (deltas[1] == 0)
        assert torch.equal(merged[name][untouched], tensor[untouched])
        differing += int((merged[name] != tensor).sum())
    assert differing > 100 and any("layers.1.fc1" in name for name in base)
    record = json.loads((tmp_path / "merged" / "merged_tasks.json").read_text())
    assert record["method"] == {"name": "fisher"}

    alone = ["--deltas", ks, "--method", "fisher", "--fisher_scores", folder, "--lambda", "0.3"]
    run(*alone, "--out", tmp_path / "alone")
    (one,) = merged_states(tmp_path / "alone", ["ks"])
    assert all(torch.equal(one[name], first[name]) for name in base)
    save_scores(folder, "speech_commands", base, scores[1])
    other_pass = {
        "pass": {"mask": "fisher", "clip": "tensor"},
        "run": {"downstream": "speech_commands", "upstream_feature_selection": "hidden_states"},
        "task file": made.CONFIG,
        "weights": [state_sha256(base)],
    }
    SharedScores(folder, other_pass).get(scores[1], lambda: scores[1])
    with pytest.raises(DataError, match="Fisher information of 2 passes over ks"):
        run(*alone, "--dry-run")


def test_one_task_is_the_average_with_its_pre_trained_self_and_its_ends_are_exact(task, model, tmp_path):
    ks, _ = task("ks", 3, LORA)  # an adapter is folded first
    base, folded = made.build("hubert_local", model).state_dict(), made.build("hubert_local", model)
    TrainedTask.read(ks).tune(folded)
    states = {}
    for weight in ("0", "0.5", "1"):
        run("--deltas", ks, "--lambda", weight, "--out", tmp_path / f"merged_{weight}")
        (states[weight],) = merged_states(tmp_path / f"merged_{weight}", ["ks"])
    for name, tensor in base.items():
        assert torch.equal(states["0"][name], tensor) and torch.equal(states["1"][name], folded.state_dict()[name])
        assert torch.equal(states["0.5"][name], torch.lerp(tensor, folded.state_dict()[name], 0.5))
    assert any(not torch.equal(states["1"][name], tensor) for name, tensor in base.items())


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("method", ["linear", "dare", "regmean"])
def test_a_weight_that_layers_share_is_merged_once(method, layers, tmp_path, capsys):
    ckpt = made.write_model("beats_local", tmp_path, layers=layers)
    upstream = made.build("beats_local", ckpt)
    base = {name: tensor.clone() for name, tensor in upstream.state_dict().items()}
    tied = [name for name in base if name.endswith("relative_attention_bias.weight")]
    assert len(tied) == layers
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in upstream.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tuned = upstream.state_dict()
    (tmp_path / "ks").mkdir()
    info = made.about("beats_local", ckpt, {"method": "full"})
    origin = {"S3prlExt": {"upstream_sha256": state_sha256(base)}}
    path = made.save_checkpoint({"Upstream": tuned, **origin}, info, tmp_path / "ks" / "dev-best.ckpt")
    flags = {"dare": ["--density", "0.5"], "regmean": ["--audio", recordings(tmp_path / "audio", 1, 5)]}
    out = tmp_path / "merged"
    run("--deltas", path, "--lambda", "1", "--method", method, *flags.get(method, []), "--out", out)
    count = int(capsys.readouterr().out.splitlines()[1].split()[2].replace(",", ""))
    assert count == sum(int((p != base[name]).sum()) for name, p in upstream.named_parameters())
    (state,) = merged_states(out, ["ks"])
    for name in tied:
        assert torch.equal(state[name], state[tied[0]])
    if method == "dare":  # half of the entries, each change doubled
        change = state[tied[0]] - base[tied[0]]
        kept = change != 0
        assert 0 < kept.sum() < kept.numel()
        torch.testing.assert_close(change[kept], 2 * (tuned[tied[0]] - base[tied[0]])[kept], rtol=1e-4, atol=1e-6)
    else:
        assert all(torch.equal(state[name], tensor) or method == "regmean" for name, tensor in tuned.items())
        torch.testing.assert_close(state[tied[0]], tuned[tied[0]])
    assert json.loads((out / "merged_tasks.json").read_text())["upstream_sha256"] == state_sha256(state)


FAMILY = "hf_speech_custom:conformer"  # with a batch norm in every block


@pytest.fixture
def statistics(tmp_path):
    """Write two upstreams tuned as a whole, whose batch norms measured other inputs; return base, folders, states."""
    ckpt = made.write_model(FAMILY, tmp_path)
    base = {name: tensor.clone() for name, tensor in made.build(FAMILY, ckpt).state_dict().items()}
    folders, states = [], []
    for number, name in enumerate(("ks", "sid")):
        upstream, generator = made.build(FAMILY, ckpt), torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in upstream.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
            for key, buffer in upstream.named_buffers():
                if key.endswith("running_mean"):
                    buffer.add_(torch.randn(buffer.shape, generator=generator))
                elif key.endswith("running_var"):
                    buffer.mul_(0.02 + 0.5 * torch.rand(buffer.shape, generator=generator))
                elif key.endswith("num_batches_tracked"):
                    buffer.add_(7)
        (tmp_path / name).mkdir()
        origin = {"S3prlExt": {"upstream_sha256": state_sha256(base)}}
        info = made.about(FAMILY, ckpt, {"method": "full"})
        made.save_checkpoint({"Upstream": upstream.state_dict(), **origin}, info, tmp_path / name / "dev-best.ckpt")
        folders.append(tmp_path / name)
        states.append(upstream.state_dict())
    return base, folders, states


@pytest.mark.parametrize(
    ("method", "weights", "shares"),
    [
        ("linear", "0.5,0.25", (0.5, 0.25)),
        ("linear", "1,1", (0.5, 0.5)),
        ("linear", "1,-0.5", (1, 0)),
        ("ties", "1,0.5", (2 / 3, 1 / 3)),
        ("dare", "0.5,0.5", (0.5, 0.5)),
        ("regmean", "0.2,0.6", (0.25, 0.75)),
    ],
)
def test_running_statistics_become_a_mean_of_those_measured(method, weights, shares, statistics, tmp_path, capsys):
    base, folders, states = statistics
    flags = ["--audio", *(recordings(tmp_path / "audio" / name, 1, 5) for name in "ab")] if method == "regmean" else []
    run("--deltas", *folders, f"--lambda={weights}", "--method", method, *flags, "--out", tmp_path / "merged")
    (merged, other) = merged_states(tmp_path / "merged", ("ks", "sid"))
    parameters = dict(made.build(FAMILY, tmp_path / "model").named_parameters())
    for name, tensor in base.items():
        assert torch.equal(merged[name], other[name])
        if "running" in name:
            rest = 1 - sum(shares)
            expected = rest * tensor + sum(s * state[name] for s, state in zip(shares, states, strict=True))
            torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-7)
        elif name not in parameters:
            assert torch.equal(merged[name], tensor)
    counts = [line.split()[2] for line in capsys.readouterr().out.splitlines()[1:3]]
    for count, state in zip(counts, states, strict=True):
        assert int(count.replace(",", "")) == sum(int((state[name] != base[name]).sum()) for name in parameters)


def test_running_statistics_of_one_task_are_its_own_or_on_the_way_to_them(statistics, tmp_path):
    base, (ks, _), (state, _) = statistics
    for method, weight, share in (("linear", "1", 1), ("linear", "0.5", 0.5), ("dare", "1", 1), ("regmean", "0.3", 1)):
        flags = ["--audio", recordings(tmp_path / f"audio{method}", 1, 5)] if method == "regmean" else []
        out = tmp_path / f"{method}{weight}"
        run("--deltas", ks, "--lambda", weight, "--method", method, *flags, "--out", out)
        (merged,) = merged_states(out, ["ks"])
        for name in base:
            if "running" in name:
                assert torch.equal(merged[name], torch.lerp(base[name], state[name], share)) or share not in (0, 1)
                torch.testing.assert_close(merged[name], torch.lerp(base[name], state[name], share))


def test_moments_are_of_a_tuned_model_with_its_own_running_statistics(statistics):
    base, (ks, _), (state, _) = statistics
    upstream = TrainedTask.read(ks / "dev-best.ckpt").build().eval()
    clip = 0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    name = next(name for name in base if name.endswith("layers.1.ffn2.intermediate_dense.weight"))
    inputs = LinearInputs({name: upstream.state_dict()[name]})
    with torch.no_grad(), inputs:
        upstream([clip])
    changed = {key: state[key] for key in base if base[key].is_floating_point() and "running" not in key}
    one = TunedWeights(
        TrainedTask.read(ks / "dev-best.ckpt"), changed, {key: state[key] for key in base if "running" in key}
    )
    torch.testing.assert_close(moments_read(one, base, [name], [clip])[name], inputs.means()[name], rtol=1e-9, atol=0)


def test_running_statistics_of_a_merge_are_loaded_kept_and_taken_back(statistics, tmp_path):
    base, folders, _ = statistics
    run("--deltas", *folders, "--lambda", "0.5", "--out", tmp_path / "merged")
    (merged,) = merged_states(tmp_path / "merged", ["ks"])
    delta = delta_files.load(tmp_path / "merged" / "ks" / "delta.safetensors")
    model = made.build(FAMILY, tmp_path / "model")
    upstream = TunedUpstream(model)
    upstream.load(delta, "the delta")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in merged.items())
    upstream.check_untouched()
    again = upstream.delta({}, {})
    assert set(again.indices) == set(delta.indices) and any("running_var" in name for name in again.indices)
    assert all(torch.equal(again.bits[name], delta.bits[name]) for name in delta.indices)
    (buffer,) = [b for name, b in model.named_buffers() if name.endswith("layers.0.conv_module.batch_norm.running_var")]
    kept = buffer.clone()
    buffer.mul_(2)
    with pytest.raises(StateChanged, match="running_var of the upstream changed in training"):
        upstream.state()
    buffer.copy_(kept)
    upstream.revert()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in base.items())
    switch = TaskSwitch(model, {"ks": tmp_path / "merged" / "ks"})
    switch.switch("ks")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in merged.items())


def test_moments_are_of_the_tuned_model_where_layers_share_a_weight(tmp_path):
    ckpt = made.write_model("beats_local", tmp_path)
    upstream = made.build("beats_local", ckpt)
    base = {name: tensor.clone() for name, tensor in upstream.state_dict().items()}
    (tied, _) = [name for name in base if name.endswith("relative_attention_bias.weight")]
    upstream.state_dict()[tied].mul_(-20)
    info = made.about("beats_local", ckpt, {"method": "full"})
    origin = {"S3prlExt": {"upstream_sha256": state_sha256(base)}}
    path = made.save_checkpoint({"Upstream": upstream.state_dict(), **origin}, info, tmp_path / "dev-best.ckpt")
    one = TunedWeights(TrainedTask.read(path), {tied: upstream.state_dict()[tied].clone()})
    clip = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    name = next(name for name in base if name.endswith("layers.1.fc1.weight"))
    inputs = LinearInputs({name: upstream.state_dict()[name]})
    with torch.no_grad(), inputs:
        upstream([clip])
    found = moments_read(one, base, [name], [clip])
    torch.testing.assert_close(found[name], inputs.means()[name], rtol=1e-9, atol=0)


def test_a_dry_run_writes_nothing(task, tmp_path, capsys):
    ks, _ = task("ks")
    assert run("--deltas", ks, "--lambda", "0.5", "--dry-run") == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lambda", "0.5"], "--out is missing"),
        (["--out", "{out}"], "--lambda is missing: give one for all tasks"),
        (["--out", "{out}", "--lambda", "0.5,0.1"], "--lambda has 2 values for 1 deltas"),
        (["--out", "{out}", "--lambda", "half"], "--lambda"),
        (["--out", "{out}", "--lambda", "1", "--density", "0.1"], "--method: linear takes no option, but density"),
        (["--out", "{out}", "--lambda", "1", "--method", "ties", "--seed", "1"], "ties takes density only"),
        (
            ["--out", "{out}", "--lambda", "1", "--method", "fisher"],
            "fisher weighs tasks by their Fisher information: give",
        ),
        (
            ["--out", "{out}", "--lambda", "1", "--fisher_scores", "{here}"],
            "belongs to --method fisher, but the method is linear",
        ),
        (
            ["--out", "{out}", "--lambda=-1", "--method", "fisher", "--fisher_scores", "{here}"],
            "must not be negative, got -1",
        ),
        (["--out", "{here}", "--lambda", "1"], "exists already: name a new one"),
    ],
)
def test_wrong_flags_are_one_sentence_before_anything_is_read(flags, message, tmp_path):
    flags = [flag.format(out=tmp_path / "merged", here=tmp_path) for flag in flags]
    with pytest.raises(UsageError, match=message):
        run("--deltas", tmp_path / "missing", *flags)
    assert not (tmp_path / "merged").exists()


def with_settings(task: TrainedTask, heads: int, version: str) -> TrainedTask:
    return replace(task, info={**task.info, KEY: {"transformers": version, "HubertConfig.heads": heads}})


def test_tasks_of_one_upstream_with_other_settings_are_refused(task):
    ks, ic = (TrainedTask.read(task(name)[0]) for name in ("ks", "ic"))
    tasks = [with_settings(ks, 2, "5"), with_settings(ic, 1, "5")]
    with pytest.raises(DataError, match=r"other settings of the upstream than .*\(HubertConfig.heads 1 instead of 2\)"):
        merge_tasks(tasks, [0.5, 0.5], MethodConfig("linear"))


def test_settings_that_two_versions_of_transformers_have_read_are_not_compared(task):
    ks, ic = (TrainedTask.read(task(name)[0]) for name in ("ks", "ic"))
    plain = merge_tasks([ks, ic], [0.5, 0.5], MethodConfig("linear")).merged
    tasks = [with_settings(ks, 2, "4"), with_settings(ic, 1, "5")]
    merged = merge_tasks(tasks, [0.5, 0.5], MethodConfig("linear")).merged
    assert merged.keys() == plain.keys() and all(torch.equal(merged[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("ks/lora/seed=0", "sid/lora/seed=0"), ["ks", "sid"]),
        (("ks/lr=1/seed=0", "sid/lr=2/seed=0", "ks/lr=2/seed=0"), ["ks_lr=1", "sid_lr=2", "ks_lr=2"]),
        (("ks", "again/ks"), ["ks", "again_ks"]),
    ],
)
def test_runs_in_folders_of_one_name_are_called_by_what_sets_them_apart(task, tmp_path, folders, names):
    runs = [task(folder)[0] for folder in folders]
    run("--deltas", *runs, "--lambda", "0.5", "--out", tmp_path / "merged")
    assert sorted(path.parent.name for path in (tmp_path / "merged").glob("*/delta.safetensors")) == sorted(names)


def test_names_that_set_nothing_apart_are_refused(task, tmp_path):
    runs = [task(folder)[0] for folder in ("a/b_c/ks", "a_b/c/ks", "x/ks")]
    with pytest.raises(UsageError, match="too much alike to tell their results apart"):
        run("--deltas", *runs, "--lambda", "0.5", "--out", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_merged_is_one_sentence(task, tmp_path):
    ks, _ = task("ks")
    (tmp_path / "elsewhere").mkdir()
    foreign, _ = task("foreign", ckpt=made.write_model("hubert_local", tmp_path / "elsewhere", seed=9))
    houlsby, _ = task("houlsby", tuning={"method": "houlsby"})
    common = ["--lambda", "0.5", "--out", tmp_path / "merged"]
    with pytest.raises(DataError, match="was tuned from another upstream than"):
        run("--deltas", ks, foreign, *common)
    with pytest.raises(UsageError, match="houlsby puts modules of its own into the upstream"):
        run("--deltas", ks, houlsby, *common)
    with pytest.raises(UsageError, match=r"names the run in .*/ks twice: leave one out"):
        run("--deltas", ks, ks, *common)
    with pytest.raises(DataError, match="missing"):
        run("--deltas", tmp_path / "missing", *common)
    with pytest.raises(UsageError, match="--lambda, --method belong to --deltas: of a merge of models -g says them"):
        run("-u", "mam_hubert_base_bert_base", "--lambda", "0.1", "--method", "ties")
    assert not (tmp_path / "merged").exists()
