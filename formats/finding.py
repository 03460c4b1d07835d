"""The generator in a file: training programs save it in dicts of dicts, under names of their own,
several times (as trained and averaged), and beside other networks.

It is known by what its dense blocks are called, wherever they are; the words around them only
choose between several.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from formats.layouts import BODY, WRAPPER, WeightsError, is_counter
from formats.others import (
    PART_OF_ANOTHER,
    QUANTISED,
    STORED_OTHERWISE,
    TRAINING_STATE,
    what_instead,
)

AVERAGED = {"swa", "avg", "average", "averaged", "averaging", "shadow", "polyak"}  # and ...ema
NOT_AVERAGED = {"raw", "current", "online", "backup", "collected"}  # the other of the two
GENERATOR = {"g", "gen", "generator", "netg", "gnet"}
SCALE_KEYS = {"scale", "sf", "upscale", "upscaling", "upscale_factor", "scale_factor"}


class Group(NamedTuple):
    """Tensors of one dict, and the keys that lead to it."""

    keys: tuple[Any, ...]
    tensors: dict[str, Tensor]


class Found(NamedTuple):
    """A generator's tensors.

    keys: of the dicts around them; prefix: of their names, which is taken off; averaged: 1 of
    those that are an average, -1 of those that it was taken of, 0 if nothing tells.
    """

    keys: tuple[Any, ...]
    prefix: str
    averaged: int
    state: dict[str, Tensor]

    @property
    def parts(self) -> list[str]:
        """Keys and modules that lead there, without wrappers."""
        modules = self.prefix.split(".")[:-1]
        named = [module for module in modules if not re.fullmatch(WRAPPER, module)]
        return [*map(str, self.keys), *named]

    @property
    def place(self) -> str:
        return ".".join(self.parts) or "top level"

    @property
    def rank(self) -> tuple[int, bool, int]:
        """Largest first: an average, then what is called a generator, then the shallowest."""
        return self.averaged, bool(_words(self.place) & GENERATOR), -len(self.parts)


def find_generator(path: Path, content: object) -> tuple[Found, str]:
    """The generator in what a file holds.

    Returns:
        The generator, its tensors under the names of their layout, and words to put behind the
        file's name if it has another generator, too: ": its params_ema". Otherwise "".

    Raises:
        WeightsError: there is none, or several with nothing to choose by, or it is not stored as
            plain weights.
    """
    groups = list(tensor_groups(content))
    weights = [group for group in groups if not TRAINING_STATE.search(dotted(group.keys))]
    found = [generator for group in weights for generator in _generators(group)]
    found += [copy for generator in found for copy in _nameless_averages(generator, weights)]
    if not found:
        raise WeightsError(f"{path} is not an ESRGAN generator: it {what_instead(content, groups)}")
    best = max(found, key=lambda each: each.rank)
    others = [each for each in found if not same_tensors(each.state, best.state)]
    if rivals := [each for each in others if each.rank == best.rank]:
        raise WeightsError(
            f"{path} holds generators that differ: {', '.join(r.place for r in (best, *rivals))}; "
            f"save one of them alone: if d is what torch.load gives, the first is {_picked(best)}"
        )
    part = f": its {best.place}" if others else ""
    _refuse_other_storage(f"{path}{part}", best.state)
    return best, part


def told_scale(path: Path, *contents: object) -> int | None:
    """3, where settings beside the tensors say so, or else the file's name (net_x3, 3xNet).

    Nobody has to say another scale: the tensors do. Only x2 and x3 look alike, so of numbers that
    are called a scale, a loss's or an augmentation's perhaps, those two count.
    """
    told = {scale for content in contents for scale in _scales(content)}
    if len(told) != 1:
        marks = re.findall(
            r"(?<![a-z\d])(?:sr)?(?:x(\d)|(\d)x)(?:plus)?(?![a-z\d])|^(\d)x(?=[a-z])",
            path.stem.lower(),
        )
        told = {int("".join(mark)) for mark in marks}
    return 3 if told == {3} else None


def tensor_groups(content: object) -> Iterator[Group]:
    """Every dict (or list) of tensors in a tree of dicts and lists."""
    for keys, node in _nodes(content):
        named = ((k.decode(errors="replace") if isinstance(k, bytes) else str(k), k) for k in node)
        tensors = {name: node[key] for name, key in named if isinstance(node[key], Tensor)}
        if tensors:
            yield Group(keys, tensors)


def _nodes(content: object) -> Iterator[tuple[tuple[Any, ...], dict]]:
    """Dicts and lists (as dicts by index), shallow ones first, with the keys that lead there."""
    waiting: deque[tuple[tuple[Any, ...], object]] = deque([((), content)])
    seen = set()
    while waiting:
        keys, node = waiting.popleft()
        if not isinstance(node, dict | list | tuple) or id(node) in seen:  # a pickle may hold rings
            continue
        seen.add(id(node))
        items = node if isinstance(node, dict) else dict(enumerate(node))
        yield keys, items
        waiting.extend(((*keys, key), value) for key, value in items.items())


def _generators(group: Group) -> Iterator[Found]:
    """Each prefix behind which a body of known names begins, with all the tensors behind it."""
    if any(map(PART_OF_ANOTHER.search, group.tensors)):
        return
    bodies = filter(None, map(BODY.search, group.tensors))
    prefixes = dict.fromkeys(body.string[: body.start(1)] for body in bodies)
    behind: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    for name, tensor in group.tensors.items():
        prefix = max(filter(name.startswith, prefixes), key=len, default=None)
        if prefix is not None and not is_counter(name):
            behind[prefix][name.removeprefix(prefix)] = tensor
    for prefix, state in behind.items():
        if not TRAINING_STATE.search(prefix):
            yield Found(group.keys, prefix, _averaged(group, prefix), _without_wrappers(state))


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = {re.sub(rf"(?<![^.]){WRAPPER}\.", "", name): state[name] for name in state}
    return plain if len(plain) == len(state) else state


def _nameless_averages(found: Found, groups: list[Group]) -> Iterator[Found]:
    """Averages of it by programs that keep no names (torch_ema), or none of their dots (LitEma)."""
    shapes = [tensor.shape for tensor in found.state.values()]
    plain = {name: name.replace(".", "") for name in found.state}
    first = next(iter(plain.values()))
    prefix: str | None
    for group in groups:
        tensors = group.tensors
        listed = all(map(str.isdecimal, tensors))
        if listed and [tensor.shape for tensor in tensors.values()] == shapes:
            prefix, state = "", dict(zip(plain, tensors.values(), strict=True))
        else:
            starts = (name.removesuffix(first) for name in tensors if name.endswith(first))
            whole = (s for s in starts if all(s + name in tensors for name in plain.values()))
            if (prefix := next(whole, None)) is None:
                continue
            state = {name: tensors[prefix + p] for name, p in plain.items()}
        if _averaged(group, prefix) > 0:
            yield Found(group.keys, prefix, 1, state)


def _averaged(group: Group, prefix: str) -> int:
    if group.keys[-1:] == ("ema_state_dict",) and "steps" in group.tensors:
        return -1  # mmengine's EMAHook saves the average as state_dict, and here what it is of
    words = _words(dotted(group.keys, prefix))
    if words & NOT_AVERAGED:
        return -1
    if any(word in AVERAGED or word.endswith("ema") for word in words):
        return 1
    # torch's AveragedModel counts beside its module.
    return int(any(f"{prefix[:end]}n_averaged" in group.tensors for end in range(len(prefix))))


def dotted(keys: tuple[Any, ...], name: str = "") -> str:
    return ".".join((*map(str, keys), name))


def _words(text: str) -> set[str]:
    """{net, g, ema} of netG_EMA."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)}


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    def same(x: Tensor, y: Tensor) -> bool:
        alike = (x.dtype, x.shape, x.layout, x.device) == (y.dtype, y.shape, y.layout, y.device)
        comparable = x.layout is torch.strided and not x.is_meta
        return x is y or (alike and comparable and torch.equal(x, y))

    return a is b or (a.keys() == b.keys() and all(same(a[name], b[name]) for name in a))


def _picked(found: Found) -> str:
    """Python that picks it out of d."""
    inner = "d" + "".join(f"[{key!r}]" for key in found.keys)
    if not found.prefix:
        return inner
    return f"{{k: v for k, v in {inner}.items() if k.startswith({found.prefix!r})}}"


def _refuse_other_storage(source: str, state: dict[str, Tensor]) -> None:
    for sign, what in STORED_OTHERWISE.items():
        if name := next((name for name in state if re.search(sign, name)), None):
            raise WeightsError(f"{source} {what} ({name})")
    for name, tensor in state.items():
        if tensor.is_quantized or tensor.dtype in (torch.int8, torch.uint8):
            raise WeightsError(f"{source} {QUANTISED} ({name})")


def _scales(content: object) -> Iterator[int]:
    """Every 2 and 3 that is called a scale."""
    for _, node in _nodes(content):
        yield from filter(None, (_scale_of(node[key]) for key in node.keys() & SCALE_KEYS))
        # The header of a .safetensors holds text alone: traiNNer-redux keeps its settings in one.
        if isinstance(text := node.get("metadata"), str):
            with suppress(ValueError, RecursionError):
                yield from _scales(json.loads(text))


def _scale_of(value: Any) -> int | None:
    with suppress(ValueError, TypeError, ArithmeticError, RuntimeError):  # no number
        return int(scale) if (scale := float(value)) in (2, 3) else None
    return None
