"""From tensors by key to experts by (layer, index): where each expert's bytes lie, and that none is missing.

Made once at start. Keys of experts and config.json must agree on layers, experts, shapes and dtypes; every
disagreement is an error that names the key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from emoe.core.errors import CheckpointError, UnsupportedModelError
from emoe.core.experts import ExpertId
from emoe.store.families import ModelShape
from emoe.store.layout import ExpertLayout
from emoe.store.linears import QuantisedLinear, find_linears
from emoe.store.names import ExpertKey, expected_parts, layer_of, parse_expert_key
from emoe.store.quantisation import FLOATS, Form, Quantisation, part_name
from emoe.store.tensors import Extent, TensorEntry

EXPERT_DTYPES = FLOATS
_BUFFER_DTYPES = frozenset({"I64", "I32", "BOOL"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Catalog:
    """`extents` in the order of `layout.parts`. `base_tensors` is every other key of the layers that the model runs.

    `dtype` is what the model computes in: that of the experts, or what config.json says where they are quantised.
    """

    layout: ExpertLayout
    dtype: str
    extents: Mapping[ExpertId, tuple[Extent, ...]]
    base_tensors: Mapping[str, TensorEntry]
    base_linears: Mapping[str, QuantisedLinear]
    """Of the base tensors: weight -> what stands for it, where it is quantised."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """One part of one expert: a whole tensor, or its slice of a packed one."""

    extent: Extent
    shape: tuple[int, ...]
    dtype: str


_Pieces = dict[ExpertId, dict[str, _Piece]]


def build_catalog(tensors: Mapping[str, TensorEntry], shape: ModelShape, *, source: Path) -> Catalog:
    """`source` is the file that lists the keys: messages about a missing key name it."""
    keys: dict[str, ExpertKey] = {}
    base: dict[str, TensorEntry] = {}
    for key, entry in tensors.items():
        # Layers past the last are for multi-token prediction (DeepSeek-V3): neither transformers nor emoe runs them.
        if (layer_of(key) or 0) >= shape.num_layers:
            continue
        parsed = parse_expert_key(key, shape.quantisation)
        if parsed is None:
            base[key] = entry
        elif not parsed.is_needless:
            keys[key] = parsed
    if not keys:
        raise UnsupportedModelError(f"{source}: no experts found; emoe serves mixture-of-experts models only")
    expected = _expected_parts(keys, shape, source)
    pieces = _cut(tensors, keys, shape, source)
    _check_complete(pieces, expected, shape, source)
    dtype = _check_alike(pieces, shape.quantisation, source)
    _check_shapes(pieces, shape, source)
    linears = find_linears(base, shape.quantisation)
    _check_base(base, linears, source)
    first = pieces[min(pieces)]
    layout = ExpertLayout.build(
        {name: piece.shape for name, piece in first.items()}, {name: piece.dtype for name, piece in first.items()}
    )
    extents = {expert: tuple(parts[part.name].extent for part in layout.parts) for expert, parts in pieces.items()}
    return Catalog(layout=layout, dtype=shape.dtype or dtype, extents=extents, base_tensors=base, base_linears=linears)


def _expected_parts(keys: Mapping[str, ExpertKey], shape: ModelShape, source: Path) -> dict[str, str]:
    """Part -> template of its key; every expert must have just these."""
    first_key, first = next(iter(keys.items()))
    label = shape.quantisation.label if shape.quantisation else ""
    hint = f"config.json says they are {label}" if label else "is it quantised?"
    for key, parsed in keys.items():
        if parsed.part is None:
            raise UnsupportedModelError(f"{source}: {key} is no part of an expert that emoe knows; {hint}")
        if (parsed.index is None) != (first.index is None):
            raise UnsupportedModelError(f"{source}: some experts are packed and others are not: {first_key} and {key}")
    if shape.has_biases and first.index is not None:
        raise UnsupportedModelError(f"{source}: {first_key}: {shape.family} is read with packed experts only")
    expected = expected_parts(first, has_biases=shape.has_biases, quantisation=shape.quantisation)
    for key, parsed in keys.items():
        if parsed.part not in expected:
            raise UnsupportedModelError(f"{source}: {key}: an expert of {shape.family} has no {parsed.part}")
    return expected


def _cut(tensors: Mapping[str, TensorEntry], keys: Mapping[str, ExpertKey], shape: ModelShape, source: Path) -> _Pieces:
    pieces: _Pieces = {}
    for key, parsed in keys.items():
        assert parsed.part is not None, f"{key} passed the check of parts"
        for expert, piece in _pieces_of(key, parsed, tensors[key], shape, source):
            parts = pieces.setdefault(expert, {})
            if parsed.part in parts:
                other = parts[parsed.part].extent.key
                raise CheckpointError(f"{source}: {other} and {key} are the same part of an expert; remove one")
            parts[parsed.part] = piece
    return pieces


def _pieces_of(
    key: str, parsed: ExpertKey, entry: TensorEntry, shape: ModelShape, source: Path
) -> Iterator[tuple[ExpertId, _Piece]]:
    if parsed.index is not None:
        extent = Extent(key, entry.file, entry.offset, entry.num_bytes)
        yield ExpertId(parsed.layer, parsed.index), _Piece(extent, entry.shape, entry.dtype)
        return
    num_experts = shape.rule.num_experts
    if not entry.shape or entry.shape[0] != num_experts:
        raise CheckpointError(
            f"{source.parent / entry.file}: {key} has shape {list(entry.shape)}, but config.json counts {num_experts} "
            "experts; fetch both again from the same revision"
        )
    stride = entry.num_bytes // num_experts
    for index in range(num_experts):
        extent = Extent(key, entry.file, entry.offset + index * stride, stride)
        yield ExpertId(parsed.layer, index), _Piece(extent, entry.shape[1:], entry.dtype)


def _check_complete(pieces: _Pieces, expected: Mapping[str, str], shape: ModelShape, source: Path) -> None:
    wanted = {ExpertId(layer, index) for layer in shape.moe_layers for index in range(shape.rule.num_experts)}
    for expert in sorted(pieces.keys() - wanted):
        key = next(iter(pieces[expert].values())).extent.key
        raise CheckpointError(
            f"{source}: {key} is an expert that config.json does not know ({shape.rule.num_experts} experts in layers "
            f"{_span(shape.moe_layers)}); fetch config.json again from the same revision"
        )
    for expert in sorted(wanted):
        for part, template in expected.items():
            if part not in pieces.get(expert, {}):
                key = template.format(layer=expert.layer, index=expert.index)
                raise CheckpointError(
                    f"{source}: {key} is missing; fetch the checkpoint again, with all its files from the same revision"
                )


def _check_alike(pieces: _Pieces, quantisation: Quantisation | None, source: Path) -> str:
    """-> the dtype of all parts; of one of them, where each has its own."""
    first = pieces[min(pieces)]
    dtype = next(iter(first.values())).dtype
    for parts in pieces.values():
        for name, piece in parts.items():
            wanted = first[name].dtype if quantisation else dtype
            if piece.dtype != wanted or piece.shape != first[name].shape:
                plain_other = piece.dtype != dtype and not quantisation
                other = next(iter(first.values())) if plain_other else first[name]
                raise UnsupportedModelError(
                    f"{source}: experts differ: {other.extent.key} is {other.dtype} {list(other.shape)}, "
                    f"{piece.extent.key} is {piece.dtype} {list(piece.shape)}; emoe needs them alike"
                )
    if quantisation is None and dtype not in EXPERT_DTYPES:
        key = next(iter(first.values())).extent.key
        raise UnsupportedModelError(f"{source}: {key} is {dtype}; experts must be {_names(EXPERT_DTYPES)}")
    return dtype


def _check_shapes(pieces: _Pieces, shape: ModelShape, source: Path) -> None:
    """Against the widths of config.json."""
    forms = _forms(shape)
    for name, piece in pieces[min(pieces)].items():
        if piece.shape not in forms[name].shapes:
            raise CheckpointError(
                f"{source.parent / piece.extent.file}: {piece.extent.key} has shape {list(piece.shape)} an expert, but "
                f"config.json makes it {list(forms[name].shapes[0])}; fetch both again from the same revision"
            )
        if piece.dtype not in forms[name].dtypes:
            label = shape.quantisation.label if shape.quantisation else ""
            raise UnsupportedModelError(
                f"{source.parent / piece.extent.file}: {piece.extent.key} is {piece.dtype}; emoe reads {label} as "
                f"{_names(forms[name].dtypes)}"
            )


def _forms(shape: ModelShape) -> dict[str, Form]:
    """What each part must be: D hidden, F intermediate."""
    D, F = shape.hidden_size, shape.intermediate_size
    weights = {"gate": (F, D), "up": (F, D), "gate_up": (2 * F, D), "down": (D, F)}
    forms = {name: _float_form(size) for name, size in (("gate_up_bias", (2 * F,)), ("down_bias", (D,)))}
    for name, (rows, columns) in weights.items():
        if shape.quantisation is not None:
            components = shape.quantisation.forms(rows, columns)
            forms |= {part_name(name, component): form for component, form in components.items()}
        else:
            forms[name] = _float_form((columns, rows) if shape.transposed else (rows, columns))
    return forms


def _float_form(shape: tuple[int, ...]) -> Form:
    return Form(shapes=(shape,), dtypes=FLOATS)


def _check_base(base: Mapping[str, TensorEntry], linears: Mapping[str, QuantisedLinear], source: Path) -> None:
    known = EXPERT_DTYPES | _BUFFER_DTYPES
    quantised = {key for linear in linears.values() for key in linear.keys.values()}
    for key, entry in base.items():
        if entry.dtype not in known and key not in quantised:
            raise UnsupportedModelError(
                f"{source.parent / entry.file}: {key} is {entry.dtype}; weights must be {_names(EXPERT_DTYPES)}"
            )


def _names(dtypes: frozenset[str]) -> str:
    return ", ".join(sorted(dtypes))


def _span(layers: tuple[int, ...]) -> str:
    return f"{layers[0]}..{layers[-1]}" if layers else "none"
