"""Options of -o and sections of task files that nothing reads: refused, or mentioned, and never the others."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest

import s3prl_ext
from s3prl_ext import extensions, run_flags
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.errors import UsageError
from s3prl_ext.tasks import named
from s3prl_ext.training.known_settings import check_overrides, unread_settings
from s3prl_ext.training.source_keys import keys_of
from s3prl_ext.training.task_file import TaskFile
from tests.support.documentation import PAGES, commands
from tests.support.experiments import task_config

SHIPPED = sorted(shipped_dir("downstream_configs").glob("*/*.yaml"))
IDLE = {"asr": {"train_batch_size", "criterion"}}  # s3prl's own task file has them, its task reads neither


def judged(task: str, option: str, preset: str = "mini") -> list[str]:
    config = load_yaml(shipped_dir("downstream_configs") / task / f"{preset}.yaml")
    return check_overrides(run_flags.overrides_of(option), config, named(task).downstream)


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("config.lr=1e-5", "'lr'; did you mean config.optimizer.lr?"),
        ("config.total_steps=10", "'total_steps'; did you mean config.runner.total_steps?"),
        ("config.batch_size=8", "'batch_size'. Known: downstream_expert, early_stop, optimizer, runner, "),
        (
            "config.datarc.train_batch_size=4",
            "'datarc'; did you mean config.downstream_expert.datarc.train_batch_size?",
        ),
        ("config.modelrc.projector_dim=64", "'modelrc'; did you mean config.downstream_expert.modelrc.projector_dim?"),
        ("config.runer.eval_step=64", "'runer'; did you mean config.runner.eval_step?"),
        ("config.tunning={'method':'full'}", "'tunning'; did you mean 'tuning'?"),
        ("config.upstream_dim=3", "unknown section of a task file 'upstream_dim'"),
    ],
)
def test_a_section_that_no_task_file_has_is_refused(option, meant):
    with pytest.raises(UsageError) as refused:
        judged("er", option)
    assert f"-o {option.partition('=')[0]}: unknown section of a task file " in str(refused.value)
    assert meant in str(refused.value)


@pytest.mark.parametrize("option", ["datarc.split='halves.json'", "datarc.split=hash", "head.window=clip"])
def test_a_setting_of_two_kinds_takes_either(option):
    """The task file has a mapping and a number there, and the task checks what it gets."""
    assert judged("librispeech_zeroshot", f"config.downstream_expert.{option}", "zero_shot") == []


def test_every_section_of_a_task_file_may_be_set():
    options = "config.specaug={'apply_time_warp':True},,config.scheduler=None,,config.early_stop={'ratio':0.5}"
    assert judged("er", f"{options},,config.tuning.method=full,,config.runner.cache=features") == []
    own = {"mine": {"a": 1}, "downstream_expert": {}}
    assert check_overrides({"config.mine.b": 2}, own, "emotion") == []


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("er", "datarc.max_timestep"),
        ("ks", "datarc.max_timestep"),
        ("ks", "modelrc.UtteranceLevel.dropout"),
        ("qbe", "two_stages"),
        ("pr", "corpus.max_timestep"),
        ("asv", "datarc.train_meta_data"),
        ("asr", "datarc.train_batch_size"),
    ],
)
def test_a_key_that_the_task_does_not_read_is_mentioned(task, key):
    (remark,) = judged(task, f"config.downstream_expert.{key}=3")
    assert remark.startswith(f"-o config.downstream_expert.{key} has no effect: the task ")


@pytest.mark.parametrize(
    ("corpus", "remarks"),
    [
        ({"name": "common_voice", "offset": 2}, 1),
        ({"name": "sbcsae", "offset": 2, "ratio": 1.0}, 1),
        ({"name": "common_voice", "offset": 2, "ratio": 0.5}, 0),
        ({"name": "common_voice", "offset": 0}, 0),
        ({"name": "LibriPhone", "offset": 2}, 0),
    ],
)
def test_an_offset_of_all_clips_is_mentioned(corpus, remarks):
    config = task_config() | {"downstream_expert": {"corpus": corpus}}
    said = "downstream_expert.corpus.offset 2 has no effect: it counts where corpus.ratio is below 1"
    assert TaskFile.read(config).remarks == (said,) * remarks


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("ks", "modelrc.UtteranceLevel.hiddens"),  # a parameter of a class that a section fills
        ("er", "modelrc.DeepModel.kernel_size"),  # the same, of one that the task file names
        ("asr", "modelrc.RNNs.sample_style"),
        ("asr", "datarc.dev-mine"),  # a split of the user's own
        ("asr", "datarc.decoder_args.beam_size_token"),  # an attribute of a Namespace
        ("sd", "datarc.label_delay"),
        ("sf", "corpus.valid_speakers"),
        ("pr", "text.slots_file"),
        ("ood", "corpus.ratio"),  # a parameter of a file that stands in for one of s3prl's
        ("asv", "modelrc.LossConfig.AAMSoftmaxLoss"),  # a section of a class of the task
        ("asv", "modelrc.module_config.XVector.agg_dim"),
        ("esc50", "head.class_map"),  # a field of a dataclass
        ("ljspeech", "head.beams"),
    ],
)
def test_a_key_that_the_task_reads_is_no_matter(task, key):
    assert judged(task, f"config.downstream_expert.{key}=None") == []


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("speech_translation", "generatorrc.lenpen"),  # fairseq's
        ("speech_translation", "modelrc.decoder_layers"),
        ("sws2013", "lossrc.margin"),  # torch's
        ("quesst14_dtw", "dtwrc.open_begin"),  # dtw's
        ("audio_snips", "modelrc.hparams.num_attention_heads"),
        ("phone_1hidden", "modelrc.hidden_size"),  # of the later one of two classes of this name
        ("phone_linear_concat", "modelrc.concat_n_frames"),
    ],
)
def test_a_key_that_another_package_may_read_is_no_matter(task, key):
    section: dict = {}
    for part in reversed(key.split(".")):
        section = {part: section or 1}
    for config in ({"downstream_expert": section}, {"downstream_expert": {key.partition(".")[0]: {}}}):
        assert check_overrides({f"config.downstream_expert.{key}": 3}, config, task) == []
        assert unread_settings(config, task) == []


def leaves(section: dict, before: str) -> list[str]:
    """Return the dotted keys of the values of nested sections."""
    values = ((f"{before}.{key}", value) for key, value in section.items())
    return [one for key, value in values for one in (leaves(value, key) if isinstance(value, dict) else [key])]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_key_of_a_shipped_task_file_is_read(path):
    config, task = load_yaml(path), named(path.parent.name).downstream
    assert unread_settings(config, task) == []
    keys = keys_of(task)
    unread = [key for key in leaves(config["downstream_expert"], "") if not keys.may_read(key.strip(".").split("."))]
    assert {key.rpartition(".")[2] for key in unread} <= IDLE.get(path.parent.name, set())


def documented() -> list:
    """Return task, task file and options of each command of the pages that gives both."""
    found = []
    for line in (line for page in PAGES for line in commands(page)):
        words = shlex.split(line, comments=True)
        if words[:2] == ["s3prl-ext", "run"] and {"-o", "-d"} <= {*words}:
            flags, _ = run_flags.parser().parse_known_args(run_flags.canonical(words[2:]))
            found += [pytest.param(flags, id=line[-60:])] if flags.config else []
    return found


@pytest.mark.parametrize("flags", documented())
def test_a_documented_option_is_no_matter(flags):
    config = load_yaml(run_flags.preset_path(flags.config))
    assert check_overrides(run_flags.overrides_of(flags.override), config, flags.downstream) == []


def test_keys_that_the_pages_name_are_read():
    """What a page calls ``config.downstream_expert...`` is a key of some task that it may mean."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named_there = set(re.findall(r"config\.downstream_expert\.([\w.]*\w)", text))
    known = [keys_of(named(path.parent.name).downstream) for path in SHIPPED]
    assert named_there
    assert not [key for key in named_there if not any(k.may_read(key.split(".")) for k in known)]


def test_a_section_of_the_users_task_file_that_nothing_reads_is_mentioned():
    config = load_yaml(shipped_dir("downstream_configs") / "er" / "mini.yaml")
    config |= {"lr": 1e-5, "datarc": {"train_batch_size": 4}}
    assert unread_settings(config, "emotion") == [
        "section lr of the task file has no effect: the task emotion does not read it; did you mean optimizer.lr?",
        "section datarc of the task file has no effect: the task emotion does not read it; did you mean "
        "downstream_expert.datarc?",
    ]


# -- tasks of extensions ---------------------------------------------------------------------------------------------


@pytest.fixture
def extension(tmp_path):
    """Return a function that registers an extension's task ``whistling`` with the given files."""
    s3prl_ext.uninstall()
    s3prl_ext.install()
    importlib.import_module("s3prl.downstream")

    def register(**files: str) -> None:
        for name, text in {"__init__": "", **files}.items():
            path = (tmp_path / "birds" / name.replace("__in__", "/")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        extensions.register_tasks(tmp_path / "birds" / "tasks")

    yield register
    s3prl_ext.uninstall()
    s3prl_ext.install()


CONFIG = {"downstream_expert": {"datarc": {"path": "x"}}}
EXPERT = """
from torch import nn
from birds.parts import Base, {names}

KEY = "sixth"


class DownstreamExpert(Base):
    def __init__(self, upstream_dim, downstream_expert, flock=None, **kwargs):
        super().__init__()
        datarc = downstream_expert["datarc"]
        self.nest = kwargs["nest"]
        datarc["first"], datarc.get("second"), datarc[KEY]
        for key in ("third", "fourth"):
            datarc[key]
        {call}
"""
PARTS = "from torch import nn\n\n\nclass Base(nn.Module):\n    pass\n\n\ndef build(fifth, **others):\n    pass\n"


def test_a_task_of_an_extension_may_have_sections_and_keys_of_its_own(extension):
    expert = EXPERT.format(names="build", call="build(**datarc)")
    extension(tasks__in__whistling__in__expert=expert, parts=PARTS)
    sections = dict.fromkeys(("config.flock.size", "config.nest"), 3)
    names = ("first", "second", "third", "fourth", "fifth", "sixth")
    keys = {f"config.downstream_expert.datarc.{key}": 3 for key in names}
    assert check_overrides(sections | keys, CONFIG, "whistling") == []
    assert unread_settings({**CONFIG, "flock": {}, "nest": {}}, "whistling") == []
    (remark,) = check_overrides({"config.downstream_expert.datarc.seventh": 3}, CONFIG, "whistling")
    assert "the task whistling reads none of that name" in remark
    with pytest.raises(UsageError, match="unknown section of a task file 'seventh'"):
        check_overrides({"config.seventh": 3}, CONFIG, "whistling")


def test_a_task_that_keeps_all_sections_may_read_them_later(extension):
    later = "self.rest = kwargs\n\n    def decode(self):\n        return self.rest['decoder']['beam']"
    extension(tasks__in__whistling__in__expert=EXPERT.format(names="build", call=later), parts=PARTS)
    assert check_overrides({"config.decoder.beam": 5}, CONFIG, "whistling") == []
    assert unread_settings({**CONFIG, "decoder": {"beam": 5}}, "whistling") == []


def test_a_task_that_hands_its_sections_on_is_not_judged(extension):
    expert = EXPERT.format(names="build", call="nn.LSTM(**datarc)")
    extension(tasks__in__whistling__in__expert=expert.replace("birds.parts", "elsewhere"))
    options = {"config.downstream_expert.datarc.seventh": 3, "config.eighth": 3}
    assert check_overrides(options, CONFIG, "whistling") == []
    assert unread_settings({**CONFIG, "eighth": 3}, "whistling") == []
