"""What s3prl's own ``eval`` may do with text of a file: look up a name, read literals, calculate; never call anything.

s3prl evaluates class names of task files (``select``, ``pooling``, ``module``, ...), which also come with checkpoints
and deltas, and layer lists of models (``conv_feature_layers``). :func:`evaluate` takes the place of ``eval`` in its
modules.
"""

from __future__ import annotations

import ast
import math
import operator
import sys
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from s3prl_ext.compat.import_hooks import FINDER, after
from s3prl_ext.errors import UsageError, nearest

# The modules of s3prl that evaluate text which a file may hold.
MODULES = tuple(
    f"s3prl.{name}"
    for name in (
        "downstream.asr.expert", "downstream.atis.expert", "downstream.atis.model", "downstream.audio_snips.expert",
        "downstream.audio_snips.model", "downstream.ctc.expert", "downstream.emotion.expert",
        "downstream.emotion.model",
        "downstream.fluent_commands.expert", "downstream.fluent_commands.model", "downstream.model",
        "downstream.mosei.expert", "downstream.phone_linear.expert", "downstream.speaker_linear_utter_libri.expert",
        "downstream.speech_commands.expert", "downstream.sv_voxceleb1.expert", "downstream.sv_voxceleb1.model",
        "downstream.timit_phone.expert", "downstream.timit_phone.upstream_expert",
        "downstream.timit_phone_linear.expert", "downstream.voxceleb1.dataset", "downstream.voxceleb1.expert",
        "downstream.voxceleb1.model", "downstream.voxceleb2_amsoftmax_segment_eval.model",
        "downstream.voxceleb2_ge2e.model", "optimizers", "schedulers", "upstream.baseline.extracter",
        "upstream.data2vec.data2vec_model", "upstream.data2vec.expert", "upstream.decoar2.expert",
        "upstream.distiller.model", "upstream.hubert.expert", "upstream.hubert.hubert_model", "upstream.interfaces",
        "upstream.lighthubert.lighthubert.lighthubert", "upstream.multires_hubert.expert",
        "upstream.multires_hubert.hubert_model", "upstream.roberta.roberta_model", "upstream.unispeech_sat.expert",
        "upstream.wav2vec.expert", "upstream.wav2vec.wav2vec_model", "upstream.wav2vec2.expert",
        "upstream.wav2vec2.wav2vec2_model", "upstream.wavlm.WavLM", "upstream.wavlm.expert",
    )
)  # fmt: skip

# Modules whose attributes an expression may name; reaching others would lead to os.system and the like.
OPEN_MODULES = {"math", "torch.nn", "torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"}
OWNERS = ("s3prl.", "s3prl_ext.", "torch.nn.", "torchaudio.")  # where a class or function that a name stands for lives
CALLED = (type, FunctionType, BuiltinFunctionType)
OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
SIGNS: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
MOST = 10_000  # items of a list, or letters of a text, that a multiplication may make
LONGEST = 2_000  # letters of an expression


def evaluate(text: Any) -> Any:
    """Return what an expression of s3prl means where it is evaluated.

    Allowed are names that the calling module or function knows, ``math`` (task files say ``-math.inf`` where s3prl's
    module does not import it), dotted ones that begin with a local variable or lead through :data:`OPEN_MODULES`,
    indices, literals, and sums and products of those.

    Raises:
        UsageError: the text is anything else, such as a call, or an unknown name.
        AttributeError: a name before a dot has no such attribute, as from ``eval``.
    """
    frame = sys._getframe(1)
    refusal = UsageError(
        f"'{str(text)[:80]}' in a task file, checkpoint, delta or model stands where s3prl expects a name or a list of "
        "numbers; it is not run as Python: correct it there, and do not trust the file if it is not yours."
    )
    try:
        tree = ast.parse(str(text).strip(), mode="eval") if len(str(text)) <= LONGEST else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        raise refusal
    try:
        return _Expression({"math": math, **frame.f_globals, **frame.f_locals}).value(tree.body)
    except (_Refused, TypeError, LookupError, ArithmeticError, RecursionError):
        raise refusal from None


class _Refused(Exception):
    pass


class _Expression:
    """Values of the parts of an expression, for the names known at its place."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.names = names

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value):
                return value
            case ast.Name(name):
                return self._name(name)
            case ast.Attribute(owner, attribute):
                return _attribute(self.value(owner), attribute)
            case ast.Subscript(owner, index):
                return self.value(owner)[self.value(index)]
            case ast.Tuple(items):
                return tuple(map(self.value, items))
            case ast.List(items):
                return list(map(self.value, items))
            case ast.Dict(keys, values) if None not in keys:
                return {self.value(key): self.value(item) for key, item in zip(keys, values, strict=True) if key}
            case ast.UnaryOp(sign, operand) if type(sign) in SIGNS:
                return SIGNS[type(sign)](self.value(operand))
            case ast.BinOp(left, sign, right) if type(sign) in OPERATORS:
                return _combined(sign, self.value(left), self.value(right))
        raise _Refused

    def _name(self, name: str) -> Any:
        if name.startswith("_"):
            raise _Refused
        if name not in self.names:
            known = (other for other, value in self.names.items() if isinstance(value, type) and _is_ours(value))
            raise UsageError(
                f"unknown name '{name[:80]}' in the task file, or in that of a checkpoint, "
                f"delta or model{nearest(name, known)}"
            )
        found = self.names[name]
        if isinstance(found, CALLED) and not _is_ours(found):
            raise _Refused
        return found


def _is_ours(found: Any) -> bool:
    return f"{found.__module__}.".startswith(OWNERS)


def _attribute(owner: Any, name: str) -> Any:
    if name.startswith("_") or (isinstance(owner, ModuleType) and owner.__name__ not in OPEN_MODULES):
        raise _Refused
    found = getattr(owner, name)
    if isinstance(found, ModuleType) and found.__name__ not in OPEN_MODULES:
        raise _Refused
    return found


def _combined(sign: ast.operator, left: Any, right: Any) -> Any:
    """Return a sum or product; a product that repeats a list or text is limited in length."""
    for repeated, times in ((left, right), (right, left)) if isinstance(sign, ast.Mult) else ():
        if hasattr(repeated, "__len__") and isinstance(times, int) and len(repeated) * times > MOST:
            raise _Refused
    return OPERATORS[type(sign)](left, right)


def _restrict(module: ModuleType) -> None:
    module.eval = evaluate


def restrict_all(_: ModuleType) -> None:
    """Let every module of :data:`MODULES` use :func:`evaluate`, now or when it is imported."""
    for name in MODULES:
        FINDER.add(name, after(_restrict))
