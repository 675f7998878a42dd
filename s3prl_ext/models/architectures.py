"""The table of model families: one row serves merging, child networks, adapters, layer decay and plots.

A row is found by the names of a model's modules and parameters, never by a class name. Any prefix may come before a
name (``hubert.``, ``model.``, ``roberta.``). All weights are [out, in]. A family of another package is one more row:
:func:`s3prl_ext.register_architecture`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from s3prl_ext.errors import UsageError

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
LINEARS = ("out_proj", "fc1", "fc2")
# Part of an encoder layer -> its name in pictures.
PARTS = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "output",
    "fc1": "feed-forward in",
    "fc2": "feed-forward out",
}


@dataclass(frozen=True)
class Architecture:
    """One row of the table. The first three or four fields serve merging; the others are needed for what they name.

    Attributes:
        name: short name of the row.
        models: who uses it.
        attention: module of query, key and value: ``encoder.layers.{layer}.self_attn.{projection}``; without
            ``{projection}`` where one module holds all three.
        projections: the row's own names of query, key and value, in this order; None where one tensor of shape
            [3 * width, ...] stacks them in this order.
        eligible: child networks: modules that may join next to the encoder layers; None: ``tuning.eligible`` is needed.
        linears: adapters: the other linear maps of a layer, ``out_proj`` (of the attention), ``fc1`` and ``fc2`` (of
            the feed-forward) -> module within the layer. The output of ``fc2`` is the feed-forward's, before dropout
            and residual sum. Empty: adapters do not fit.
        front: module before the encoder that tells rows with equal layer names apart.
        blocks: adapters: list of convolution blocks on the waveform; None where there are none.
        convolutions: modules within the encoder that come before the first layer and belong to the front end.
        mask: prefix: keyword under which the encoder takes its mask of positions; None: prefix does not fit.
        valid: prefix: what that mask holds at a position that is not padding.
        time: prefix: dimension of a layer's input that counts positions; the batch is the other one of 0 and 1.
        unused: modules and parameters that no hidden state depends on: targets and heads of pre-training, poolers.
        on_disk: name of the row that the model's files follow, where transformers renames modules when it reads them.
    """

    name: str
    models: str
    attention: str
    projections: tuple[str, str, str] | None = PROJECTIONS
    eligible: tuple[str, ...] | None = None
    linears: Mapping[str, str] = field(default_factory=dict)
    front: str | None = None
    blocks: str | None = None
    convolutions: tuple[str, ...] = ()
    mask: str | None = None
    valid: bool = True
    time: int = 1
    unused: tuple[str, ...] = ()
    on_disk: str | None = None

    @property
    def fused(self) -> bool:
        """Whether one tensor holds query, key and value."""
        return self.projections is None

    @property
    def layers(self) -> str:
        """Module that lists the layers: ``encoder.layers``."""
        return self.attention.partition(".{layer}")[0]

    @property
    def encoder(self) -> str:
        """Module that holds the layers: ``encoder``, or empty."""
        return self.layers.rpartition(".")[0]

    @cached_property
    def parts(self) -> dict[str, str]:
        """Linear map, by the name that all rows share (``q_proj`` ... ``fc2``) -> its module within a layer."""
        inner = self.attention.partition("{layer}.")[2]
        own = zip(PROJECTIONS, self.projections or (), strict=False)
        return {name: inner.replace("{projection}", theirs) for name, theirs in own} | dict(self.linears)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Regular expression of an attention parameter; groups prefix, layer, projection (unless fused), kind."""
        return re.compile(rf"(?P<prefix>(?:.*\.)?){self._module}\.(?P<kind>weight|bias)")

    @cached_property
    def _module(self) -> str:
        body = re.escape(self.attention).replace(r"\{layer\}", r"(?P<layer>\d+)")
        return body.replace(r"\{projection\}", f"(?P<projection>{'|'.join(self.projections or ())})")

    def lacks(self, fields: Iterable[str]) -> list[str]:
        """Return those of the row's fields that are empty, so that what needs them does not fit the family."""
        return [field for field in fields if getattr(self, field) is None or getattr(self, field) == {}]

    def fits(self, names: Iterable[str]) -> bool:
        """Return whether parameters have the names of this row's attention, also where those are parametrised."""
        attention = re.compile(rf"(?:^|\.){self._module}\.")
        return any(attention.search(name) for name in names)


CONVOLUTIONS = "feature_extractor.conv_layers"
TRANSFORMERS = {
    "out_proj": "attention.out_proj",
    "fc1": "feed_forward.intermediate_dense",
    "fc2": "feed_forward.output_dense",
}
CONFORMER = {"out_proj": "self_attn.linear_out", "fc1": "ffn2.intermediate_dense", "fc2": "ffn2.output_dense"}
FAIRSEQ = {"out_proj": "self_attn.out_proj", "fc1": "fc1", "fc2": "fc2"}

# Tried from top to bottom, the first row that fits wins: a row comes before those that match the end of its names.
ARCHITECTURES = (
    Architecture(
        "transformers-speech",
        "transformers HuBERT, wav2vec 2.0 (XLS-R, MMS), WavLM, data2vec-audio, UniSpeech, UniSpeech-SAT",
        "encoder.layers.{layer}.attention.{projection}",
        eligible=("encoder.layer_norm", "feature_projection.layer_norm"),
        linears=TRANSFORMERS,
        front="feature_projection.projection",
        blocks=CONVOLUTIONS,
        mask="attention_mask",
        unused=("masked_spec_embed",),
    ),
    Architecture(
        "sew",
        "transformers SEW",
        "encoder.layers.{layer}.attention.{projection}",
        eligible=("encoder.layer_norm", "model.layer_norm"),
        linears=TRANSFORMERS,
        front="encoder.upsample",
        blocks=CONVOLUTIONS,
        unused=("masked_spec_embed",),
    ),
    Architecture(
        "sew-d",
        "transformers SEW-D",
        "encoder.encoder.layer.{layer}.attention.self.{projection}",
        ("query_proj", "key_proj", "value_proj"),
        eligible=("model.layer_norm",),
        linears={"out_proj": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense"},
        front="encoder.upsample",
        blocks=CONVOLUTIONS,
        unused=("masked_spec_embed",),
    ),
    Architecture(
        "conformer",
        "transformers wav2vec2-conformer",
        "encoder.layers.{layer}.self_attn.{projection}",
        ("linear_q", "linear_k", "linear_v"),
        eligible=("encoder.layer_norm", "feature_projection.layer_norm"),
        linears=CONFORMER,
        front=CONVOLUTIONS,
        blocks=CONVOLUTIONS,
        mask="attention_mask",
        unused=("masked_spec_embed",),
    ),
    Architecture(
        "w2v-bert",
        "transformers w2v-BERT 2.0",
        "encoder.layers.{layer}.self_attn.{projection}",
        ("linear_q", "linear_k", "linear_v"),
        eligible=("feature_projection.layer_norm",),
        linears=CONFORMER,
        front="feature_projection",
        mask="attention_mask",
        unused=("masked_spec_embed",),
    ),
    Architecture(
        "fairseq",
        "s3prl and fairseq HuBERT, wav2vec 2.0, WavLM, data2vec",
        "encoder.layers.{layer}.self_attn.{projection}",
        eligible=("encoder.layer_norm", "model.layer_norm"),
        linears=FAIRSEQ,
        front=CONVOLUTIONS,
        blocks=CONVOLUTIONS,
        mask="padding_mask",
        valid=False,
        time=0,
        unused=("mask_emb", "final_proj", "label_embs_concat", "quantizer", "project_q", "target_glu"),
    ),
    Architecture(
        "whisper",
        "Whisper's encoder",
        "encoder.layers.{layer}.self_attn.{projection}",
        eligible=("encoder.layer_norm",),
        linears=FAIRSEQ,
        front="encoder.embed_positions",
        convolutions=("conv1", "conv2"),
        mask="attention_mask",
    ),
    Architecture(
        "moonshine",
        "Moonshine's encoder",
        "encoder.layers.{layer}.self_attn.{projection}",
        eligible=("encoder.layer_norm",),
        linears={"out_proj": "self_attn.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
        front="encoder.groupnorm",
        convolutions=("conv1", "groupnorm", "conv2", "conv3"),
    ),
    Architecture(
        "beats",
        "BEATs",
        "encoder.layers.{layer}.self_attn.{projection}",
        eligible=("encoder.layer_norm", "model.layer_norm"),
        linears=FAIRSEQ,
        front="patch_embedding",
        mask="padding_mask",
        valid=False,
    ),
    Architecture(
        "bert",
        "transformers BERT, RoBERTa",
        "encoder.layer.{layer}.attention.self.{projection}",
        ("query", "key", "value"),
        unused=("pooler",),
    ),
    Architecture(
        "vit",
        "transformers ViT, DeiT, DINOv2, AST: files on disk (and in memory before version 5)",
        "encoder.layer.{layer}.attention.attention.{projection}",
        ("query", "key", "value"),
        eligible=("layernorm",),
        linears={"out_proj": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense"},
        unused=("mask_token", "pooler"),
    ),
    Architecture("timm", "timm ViT and its relatives", "blocks.{layer}.attn.qkv", None),
    Architecture(
        "distilbert",
        "transformers DistilBERT",
        "transformer.layer.{layer}.attention.{projection}",
        ("q_lin", "k_lin", "v_lin"),
    ),
    Architecture("modernbert", "transformers ModernBERT", "layers.{layer}.attn.Wqkv", None),
    Architecture("decoder", "Whisper's decoder, with prefix: decoder", "decoder.layers.{layer}.self_attn.{projection}"),
    Architecture("dinov2-memory", "transformers 5 DINOv2 in memory", "encoder.layer.{layer}.attention.{projection}"),
    Architecture(
        "vit-memory",
        "transformers 5 ViT, DeiT, AST in memory",
        "layers.{layer}.attention.{projection}",
        eligible=("layernorm",),
        linears={"out_proj": "attention.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
        convolutions=("embeddings",),
        on_disk="vit",
    ),
)

added: list[Architecture] = []  # rows of extensions, tried after the table


def known() -> tuple[Architecture, ...]:
    """Return the table and the rows that were added, in the order in which they are tried."""
    return (*ARCHITECTURES, *added)


def add(row: Architecture) -> None:
    """Add a row after the table, so that models which the table knows are read as before.

    Raises:
        UsageError: the template lacks a placeholder, the row does not name three projections, or a linear map is
            unknown.
    """
    wanted = ("{layer}",) if row.fused else ("{layer}", "{projection}")
    missing = [placeholder for placeholder in wanted if placeholder not in row.attention]
    if missing:
        raise UsageError(
            f"the template '{row.attention}' of the architecture '{row.name}' lacks {' and '.join(missing)}."
        )
    if row.projections is not None and len(set(row.projections)) != len(PROJECTIONS):
        raise UsageError(f"the architecture '{row.name}' must name query, key and value, but names {row.projections}.")
    if row.linears and (row.fused or set(row.linears) != set(LINEARS)):
        raise UsageError(
            f"the architecture '{row.name}' must name {', '.join(LINEARS)} as linears, with query, key and value of "
            "their own, or no linears: then adapters do not fit."
        )
    added.append(row)


def find_architecture(names: Iterable[str]) -> Architecture | None:
    """Return the row of a model by the names of its parameters, None where no row fits.

    Of rows with equal names of attention the one whose front the model has, or the first.
    """
    names = list(names)
    rows = [row for row in known() if row.fits(names)]
    first = [row for row in rows if row.attention == rows[0].attention]
    return next((row for row in first if row.front is None or has_module(names, row.front)), rows[0] if rows else None)


def names_on_disk(names: Iterable[str]) -> dict[str, str]:
    """Return for each parameter in memory its name in the model's files, see :attr:`Architecture.on_disk`."""
    names = list(names)
    row = find_architecture(names)
    disk = next((other for other in known() if row is not None and other.name == row.on_disk), None)
    if row is None or disk is None:
        return {name: name for name in names}
    theirs = {module: disk.parts[part] for part, module in row.parts.items()}
    layer = re.compile(rf"(?P<prefix>(?:.*\.)?){re.escape(row.layers)}\.(?P<layer>\d+)\.(?P<module>.+)\.(?P<kind>\w+)")

    def renamed(name: str) -> str:
        match = layer.fullmatch(name)
        if match is None:
            return name
        module = theirs.get(match["module"], match["module"])
        return f"{match['prefix']}{disk.layers}.{match['layer']}.{module}.{match['kind']}"

    return {name: renamed(name) for name in names}


def has_module(names: Iterable[str], module: str) -> bool:
    """Return whether parameters belong to a module, after any prefix."""
    inside = re.compile(rf"(?:^|\.){re.escape(module)}\.")
    return any(inside.search(name) for name in names)


def encoder_layers(names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Return for each parameter of an encoder layer its 0-based layer and its name within the layer.

    A model that no row fits is searched for the lists of layers of all rows, in order.
    """
    names = list(names)
    row = find_architecture(names)
    for layers in [row.layers] if row else dict.fromkeys(row.layers for row in known()):
        inside = re.compile(rf"(?:^|\.){re.escape(layers)}\.(\d+)\.(.+)")
        found = {name: (int(match[1]), match[2]) for name in names if (match := inside.search(name))}
        if found:
            return found
    return {}


def part_of(name: str) -> str | None:
    """Return the linear map (``q_proj`` ... ``fc2``) that a parameter belongs to, by its name within a layer."""
    module = name.rpartition(".")[0]
    return next((part for row in known() for part, theirs in row.parts.items() if theirs == module), None)


def without_unused(names: Iterable[str]) -> Iterator[str]:
    """Return the names of the parameters that hidden states can depend on, see :attr:`Architecture.unused`."""
    unused = {part for row in known() for part in row.unused}
    return (name for name in names if unused.isdisjoint(name.split(".")))
