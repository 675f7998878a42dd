"""The validated section ``tuning`` of a task file: which weights of the upstream train, and how they are chosen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from s3prl_ext import adapters
from s3prl_ext.child_tuning.names import BASE_DTYPES, BUDGETS, FISHER_MASKS, MASKS, RESELECTED, UNITS
from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.settings import choice, count, load, names, number, raise_all, switch, unknown_keys
from s3prl_ext.training.parameter_groups import RatesConfig

MASK_OPTIONS = {
    "fisher": FISHER_MASKS,
    "lottery": ("lottery",),
    "redraw": ("random",),
    "reselect_every": RESELECTED,
    "gradual": RESELECTED,
}  # key -> the masks that read it
# What decides which weights are chosen before training, but density.
CHOICE_KEYS = ("method", "mask", "budget", "unit", "eligible", "fisher", "lottery", "redraw", "gradual")
MASK_KEYS = (*CHOICE_KEYS[1:], "density", "reselect_every", "sparse_gradients", "clip_scope", "base_dtype")


@dataclass(frozen=True)
class FisherConfig:
    """Section ``tuning.fisher``: how the Fisher information of the weights is estimated.

    Attributes:
        granularity: ``batch``: squares of the gradient of each batch's mean loss; ``sample``: of each utterance's.
        clip: ``none``, ``tensor`` (each tensor's gradient before squaring) or ``global`` (all of them together).
        max_norm: limit of `clip`; by default ``runner.gradient_clipping``.
        mode: ``eval`` or ``train`` (with dropout and SpecAugment).
        loader: ``split``: each utterance of the training split once; ``task``: the task's own training loader.
        max_batches: so many batches (utterances with ``granularity: sample``), drawn from the whole split; None = all.
        loss_divisor: the loss is divided by so much before the gradient is clipped.
        warm_head: steps that copies of featurizer and downstream train on the frozen upstream before the pass.
        warm_lr: learning rate (Adam) of these steps; by default ``optimizer.lr``.
        group_by_length: so many batches exchange their clips, for batches of like length; None = the list's own
            batches.
    """

    granularity: Annotated[str, choice("batch", "sample")] = "batch"
    clip: Annotated[str, choice("none", "tensor", "global")] = "none"
    max_norm: Annotated[float, number(above=0)] = 1.0
    mode: Annotated[str, choice("eval", "train")] = "eval"
    loader: Annotated[str, choice("split", "task")] = "split"
    max_batches: Annotated[int | None, count()] = None
    loss_divisor: Annotated[int, count()] = 1
    warm_head: Annotated[int, count(0)] = 0
    warm_lr: Annotated[float, number(above=0)] = 0.0
    group_by_length: Annotated[int | None, count(2)] = None

    @classmethod
    def from_section(cls, section: Any, config: Section, problems: list[str]) -> FisherConfig:
        """Check the section; problems are appended to `problems`.

        Args:
            section: value of ``tuning.fisher``.
            config: the whole task file, for the defaults of `max_norm` and `warm_lr`.
            problems: sentences that the caller reports together.
        """
        where = "tuning.fisher"
        if isinstance(section, Mapping):
            section = cls._completed(section, config, problems)
        return load(cls, section, where, example="{max_batches: 100}", problems=problems)

    @staticmethod
    def _completed(section: Section, config: Section, problems: list[str]) -> Record:
        """Return the section with what its preset and the rest of the task file say."""
        content = {key: value for key, value in section.items() if key != "preset"}
        preset = section.get("preset")
        if preset not in (None, *FISHER_PRESETS):
            problems.append(str(unknown_name("preset", str(preset), FISHER_PRESETS, where="tuning.fisher")))
        runner, optimizer = (config.get(name) or {} for name in ("runner", "optimizer"))
        if preset == "official":
            divisor = runner.get("gradient_accumulate_steps", 1)
            content = {**FISHER_PRESETS[preset], "loss_divisor": divisor, **content}
        if content.get("clip", "none") != "none":
            content.setdefault("max_norm", runner.get("gradient_clipping", 1.0))
        if content.get("warm_head"):
            content.setdefault("warm_lr", optimizer.get("lr", 1.0e-3))
        return content

    def conflicts(self, where: str) -> Iterator[str]:
        """Yield what does not go together."""
        if self.loader == "task" and self.granularity == "sample":
            yield (
                f"{where}.granularity: sample reads single utterances, loader: task the task's own batches: add "
                "loader: split, or leave granularity out."
            )
        if self.group_by_length and (self.loader == "task" or self.granularity == "sample"):
            why = "reads batches of the task's own" if self.loader == "task" else "reads single utterances"
            key = "loader: task" if self.loader == "task" else "granularity: sample"
            yield f"{where}.group_by_length divides a split into batches, and {key} {why}: leave one of the two out."

    def stored(self) -> Record:
        """Return the section as passes, masks and shared scores are kept under it; an unset newer key is left out."""
        settings = asdict(self)
        if self.group_by_length is None:
            del settings["group_by_length"]
        return settings


@dataclass(frozen=True)
class LotteryConfig:
    """Section ``tuning.lottery``: the dense phase whose largest changes are the child network.

    Attributes:
        steps: optimizer steps (Adam, one batch each) of the dense phase.
        lr: learning rate of the eligible weights; by default ``optimizer.lr``.
        head_lr: that of featurizer and head; by default ``optimizer.lr``.
        max_norm: limit of the gradient's norm; by default ``runner.gradient_clipping``.
    """

    steps: Annotated[int, count()] = 100
    lr: Annotated[float, number(above=0)] = 1.0e-3
    head_lr: Annotated[float, number(above=0)] = 1.0e-3
    max_norm: Annotated[float, number(above=0)] = 1.0

    @classmethod
    def from_section(cls, section: Any, config: Section, problems: list[str]) -> LotteryConfig:
        """Check the section with what the rest of the task file says; problems are appended to `problems`."""
        runner, optimizer = (config.get(name) or {} for name in ("runner", "optimizer"))
        lr = optimizer.get("lr", cls.lr)
        if isinstance(section, Mapping):
            section = {"lr": lr, "head_lr": lr, "max_norm": runner.get("gradient_clipping", cls.max_norm), **section}
        return load(cls, section, "tuning.lottery", example="{steps: 100}", problems=problems)


@dataclass(frozen=True)
class GradualConfig:
    """Section ``tuning.gradual``: a density that grows or shrinks during training.

    Attributes:
        start: density before the first step.
        until: share of the steps at whose end it is ``tuning.density``.
    """

    start: Annotated[float, number(above=0, most=1)]
    until: Annotated[float, number(above=0, most=1)] = 0.5


# The released code; it also divides the loss by runner.gradient_accumulate_steps.
FISHER_PRESETS = {"official": {"granularity": "batch", "clip": "tensor", "mode": "train", "loader": "task"}}


@dataclass(frozen=True)
class TuningConfig:
    """Section ``tuning``: which weights of the upstream train.

    Attributes:
        method: a name of :data:`s3prl_ext.training.methods.METHODS`.
        mask: child networks: ``fisher`` (CHILD-TUNING_D), ``random`` (CHILD-TUNING_F), or as a control ``magnitude``,
            the weights of largest absolute value; ``snip``, those without which the loss changes most to first order.
        density: child networks: fraction of the eligible weights that trains, in (0, 1]; 1 for other methods.
        budget: child networks: ``global``: the density is that of all eligible weights together; ``layer``: of each
            encoder layer; ``tensor``: of each tensor.
        unit: child networks: ``entry``: single weights are chosen; ``row``: output neurons, a row of a matrix and its
            bias; ``head``: attention heads, and rows of everything else.
        eligible: name patterns (shell wildcards) of weights that may join a child network; None = by architecture.
        fisher: how the Fisher information is estimated.
        lottery: the dense phase of mask ``lottery``.
        redraw: random masks: draw anew at each step and divide by the density, as the original NLP code does.
        reselect_every: choose the child network again every so many steps; None: once, before training.
        gradual: course of the density to :attr:`density`, a step at each choice; None: always that.
        sparse_gradients: compute no dense gradient for weight matrices of which at most 3 %, or whole rows, train.
        clip_scope: ``active``: ``runner.gradient_clipping`` limits the norm of what trains; ``all``: the norm counts
            the gradient of every eligible weight (as the released code does).
        base_dtype: ``bfloat16``: the matrices among the eligible weights are rounded to it, and held in it but for the
            child network, whose values are float32.
        rates: learning rates of the upstream's weights and of a learnable lambda, and which encoder blocks train.
        adapter: options of a method of :mod:`s3prl_ext.adapters`, an instance of its ``Config``; None for others.
    """

    method: str
    mask: Annotated[str, choice(MASKS)] = "fisher"
    density: Annotated[float, number(above=0, most=1)] = 1.0
    budget: Annotated[str, choice(*BUDGETS)] = "global"
    unit: Annotated[str, choice(*UNITS)] = "entry"
    eligible: Annotated[tuple[str, ...] | None, names("[encoder.layers.*]")] = None
    fisher: FisherConfig = FisherConfig()
    lottery: LotteryConfig = LotteryConfig()
    redraw: Annotated[bool, switch()] = False
    reselect_every: Annotated[int | None, count()] = None
    gradual: GradualConfig | None = None
    sparse_gradients: Annotated[bool, switch()] = True
    clip_scope: Annotated[str, choice("active", "all")] = "active"
    base_dtype: Annotated[str, choice(*BASE_DTYPES)] = "float32"
    rates: RatesConfig = field(default_factory=RatesConfig)
    adapter: Any = None

    def conflicts(self, where: str) -> Iterator[str]:
        """Yield what does not go together."""
        if self.unit != "entry" and self.budget == "tensor":
            yield f"{where}.unit {self.unit} spans tensors (a row and its bias): use budget: layer, or leave it out."
        for key, value in (("unit", self.unit), ("budget", self.budget)):
            if self.redraw and value not in ("entry", "global"):
                drawn = "draws single weights of the whole upstream anew at each step"
                yield f"{where}.redraw {drawn}: leave out {where}.{key}."
        if self.redraw and self.clip_scope == "all":
            yield (
                f"{where}.redraw draws which gradients count before they are clipped, so that {where}.clip_scope all "
                "cannot count every eligible weight: leave one of the two out."
            )
        if self.redraw and self.reselect_every is not None:
            yield f"{where}.redraw draws anew at each step already: leave out {where}.reselect_every."
        if self.held and self.reselect_every is not None:
            yield (
                f"{where}.base_dtype bfloat16 cannot hold the float32 value of a weight that leaves the child network: "
                f"leave out {where}.reselect_every, or base_dtype."
            )
        if self.held and self.clip_scope == "all":
            yield (
                f"{where}.clip_scope all needs the gradient of every eligible weight, which base_dtype bfloat16 does "
                "not compute: leave one of the two out."
            )

    @property
    def held(self) -> bool:
        """Whether frozen matrices are held in bfloat16."""
        return self.base_dtype == "bfloat16"

    @property
    def has_pass(self) -> bool:
        """Whether a Fisher pass over the training split chooses the mask."""
        return self.mask in FISHER_MASKS

    @property
    def trains_all(self) -> bool:
        """Whether every eligible weight may train, from the first step on."""
        return self.redraw or (self.density == 1 and self.reselect_every is None)

    @property
    def first_density(self) -> float:
        """The density before the first step."""
        return self.density if self.gradual is None else self.gradual.start

    def density_at(self, step: int, total_steps: int) -> float:
        """Return the density that a child network chosen at a step has.

        With d_0 at the start, d at the end and u = ``gradual.until`` it is d + (d_0 - d)(1 - min(1, step / (u T)))^3,
        the cubic schedule of Zhu & Gupta (2017, arXiv:1710.01878).

        Args:
            step: optimizer steps done.
            total_steps: T, those of the whole run.
        """
        if self.gradual is None:
            return self.density
        rest = 1 - min(1.0, step / (self.gradual.until * total_steps))
        return self.density + (self.gradual.start - self.density) * rest**3

    def last_choice(self, total_steps: int) -> int:
        """Return after how many of T steps the child network is chosen for the last time; 0: before training alone."""
        every = self.reselect_every
        return 0 if every is None else (total_steps - 1) // every * every

    def check_length(self, total_steps: int, earlier: Collection[int] = ()) -> None:
        """Raise UsageError where the last choice of a run has another density than :attr:`density`, which is recorded.

        Args:
            total_steps: T, those of the whole run.
            earlier: lengths that the run had before it was resumed, where its last choice may be of one of them.
        """
        last = self.last_choice(total_steps)
        for length in (total_steps, *earlier):
            reached = self.density_at(last, length)
            if self.gradual is not None and reached != self.density:
                chosen = f"is chosen for the last time after step {last}" if last else "is never chosen again"
                before = "" if length == total_steps else " that the run had before"
                raise UsageError(
                    f"tuning.gradual would end at a density of {reached:.4g}, not at tuning.density {self.density:g}: "
                    f"its course takes {self.gradual.until * length:g} of {length} steps{before}, and the child "
                    f"network {chosen}; give a smaller tuning.reselect_every (now {self.reselect_every}) or "
                    "gradual.until, or more steps."
                )

    @classmethod
    def from_config(cls, config: Section, methods: Section) -> TuningConfig | None:
        """Check section ``tuning`` of a task file; None where there is no such section.

        Args:
            config: the whole task file.
            methods: the known methods, by name; each has the attributes ``keys`` and ``has_mask``.
        """
        if "tuning" not in config:
            return None
        section = config["tuning"]
        if not isinstance(section, Mapping):
            raise UsageError(f"tuning must be a mapping such as {{method: child}}, got {section!r}.")
        method = str(section.get("method", ""))
        options = adapters.options(method) if method in adapters.ADAPTERS else ()
        problems = _key_problems(section, method, methods)
        tuning = cls(method)
        if method in methods and methods[method].has_mask:
            tuning = cls._with_mask(method, section, config, problems)
        if method in adapters.ADAPTERS:
            given = {key: section[key] for key in options if key in section}
            tuning = replace(tuning, adapter=_adapter_options(method, given, problems))
        if method in methods:
            tuning = replace(tuning, rates=RatesConfig.from_section(section, problems))
        raise_all(problems)
        return tuning

    @classmethod
    def _with_mask(cls, method: str, section: Section, config: Section, problems: list[str]) -> TuningConfig:
        """Check the keys of a method that chooses a child network."""
        if section.get("density") is None:
            problems.append("tuning.density is missing: the fraction of the upstream's weights to train, such as 0.01.")
        sections = ("fisher", "lottery", "gradual")
        given = {key: section[key] for key in MASK_KEYS if key in section and key not in sections}
        tuning = load(cls, {"method": method, **given}, "tuning", problems=problems)
        problems += [
            f"tuning.{key} belongs to mask {_either(list(owners))}, not to {tuning.mask}; remove it."
            for key, owners in MASK_OPTIONS.items()
            if section.get(key) and tuning.mask not in owners
        ]
        gradual = None
        if section.get("gradual") is not None:
            gradual = load(
                GradualConfig, section["gradual"], "tuning.gradual", example="{start: 0.1}", problems=problems
            )
        if gradual is not None and tuning.reselect_every is None:
            problems.append(
                "tuning.gradual changes the density where a child network is chosen again: add reselect_every."
            )
        elif tuning.reselect_every is not None and gradual is None and tuning.density == 1:
            problems.append("tuning.density 1 leaves nothing to choose again: leave out reselect_every.")
        if tuning.held and section.get("density") is not None and tuning.trains_all:
            problems.append(
                "tuning.base_dtype bfloat16 holds weights that do not train, and here every eligible one may: give a "
                "density below 1 without redraw, or leave base_dtype out."
            )
        return replace(
            tuning,
            gradual=gradual,
            fisher=FisherConfig.from_section(section.get("fisher") or {}, config, problems),
            lottery=(
                LotteryConfig.from_section(section.get("lottery") or {}, config, problems)
                if tuning.mask == "lottery"
                else LotteryConfig()
            ),
        )


def _key_problems(section: Section, method: str, methods: Section) -> list[str]:
    """Return what is wrong with the method's name and with its other keys."""
    owners: dict[str, list[str]] = {}
    for name in methods:
        for key in methods[name].keys:
            owners.setdefault(key, []).append(name)
    if method not in methods:
        named = str(unknown_name("method", method, methods, where="tuning"))
        missing = f"tuning.method is missing; known: {', '.join(methods)}."
        return [*unknown_keys(section, owners, "tuning"), named if method else missing]
    own = methods[method].keys
    foreign = [key for key in section if key in owners and key not in own]
    return unknown_keys({key: section[key] for key in section if key not in foreign}, own, "tuning") + [
        f"tuning.{key} belongs to method {_either(owners[key])}, not to {method}; remove it." for key in foreign
    ]


def _either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _adapter_options(method: str, given: Section, problems: list[str]) -> Any:
    try:
        return adapters.parse_options(method, given)
    except UsageError as error:
        problems.append(f"tuning: {error}")
        return None
