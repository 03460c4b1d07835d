"""What a run trains and validates on; what is left out is named before the first step."""

import dataclasses
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from config import Config
from dataset import DEMO_DIR, CropStream, write_demo_photographs
from images.kinds import find_images
from images.packs import Pack, pack_folder, refuse_missing
from images.pairs import LOWEST_FIT, DataError
from training.validation import chosen, smallest_scored
from utils import listed

NO_DATA = """\
no images in {folder}. Put yours there and a few others into data/valid, or name other folders:
  python train.py --train-dir DIR --valid-dir DIR; or fetch DIV2K (4 GB): python dataset.py div2k
  or see it work on photographs that are here already: python train.py --preset demo"""


def uses_demo(config: Config) -> bool:
    return any(DEMO_DIR in Path(name).parents for name in (*config.train_dir, config.valid_dir))


def prepare_folders(config: Config, packed: Mapping[str, str] | None) -> None:
    """Write the demo's photographs if this run needs them; without any data, say how to get some.

    Args:
        config: of the run.
        packed: as of `load_data`.

    Raises:
        DataError: no images where they are looked for by default, or a folder that is not there.
    """
    if uses_demo(config):
        write_demo_photographs()
    if config.train_dir == Config.train_dir and packed is None:
        found = find_images(config.train_dir[0])
        if not found.images:
            words = NO_DATA.format(folder=config.train_dir[0])
            raise DataError("\n  ".join([words, *found.others]))
    valid_dir = "" if config.valid_dir == Config.valid_dir else config.valid_dir
    for name in filter(None, (*config.train_dir, *config.lr_dir, valid_dir, config.valid_lr_dir)):
        refuse_missing(Path(name))


def load_data(
    config: Config, phases: list[str], packed: Mapping[str, str] | None = None
) -> tuple[dict[str, CropStream], Pack | None, dict[str, str]]:
    """The crops of each phase, the validation images, and ids and contents of the packs of both.

    Every file is read, or known, by now.

    Args:
        config: of the run.
        phases: that it has yet to do.
        packed: for a run that goes on, its packs until now, as far as they are known: it keeps
            their copies of images that are gone. A new run (None) takes what is there.

    Raises:
        DataError: no image is large enough for a phase's crop, or for validation.
    """
    lr_dirs = config.lr_dir or [None] * len(config.train_dir)
    packs = [
        pack_folder(folder, config.scale, lr_dir, packed)
        for folder, lr_dir in zip(config.train_dir, lr_dirs, strict=True)
    ]
    valid, unused = load_valid(config, packed)
    all_packs = [pack for pack in (*packs, valid) if pack is not None]
    others = [line for pack in all_packs for line in pack.others]
    remarks = [f"Left out: {line}" for line in (*others, *unused)]
    remarks += other_images(all_packs, packed or {})
    remarks += remarks_at_scale_1(config, valid)
    remarks += [remark for pack in packs for remark in remarks_on(pack)]
    remarks += [remark for name in phases if (remark := below_crop(config, name, packs))]
    scored = []
    if valid is not None:
        scored = chosen(valid, config.val_images)
        remarks += remarks_on(valid) + unscored(valid) + trained_on(valid, scored, packs)
    for remark in dict.fromkeys(remarks):  # the same folder may be given twice
        print(remark)
    for name in phases:
        refuse_small(config, name, packs)
    if valid is not None and not scored:
        raise DataError(f"{config.valid_dir}: no image is large enough to be scored")
    streams = {}
    for name in phases:
        own = config.phase(name)
        streams[name] = CropStream(
            packs, own.patch, config.seed, config.degradation, own.busiest_of
        )
    return streams, valid, {pack.id: pack.contents for pack in all_packs}


def load_valid(config: Config, packed: Mapping[str, str] | None) -> tuple[Pack | None, list[str]]:
    """The pack of the validation images; and where there are none, what is not read, in lines."""
    if not config.valid_dir:
        return None, []
    valid_dir, lr_dir = config.valid_dir, config.valid_lr_dir or None
    if valid_dir != Config.valid_dir or (found := find_images(valid_dir)).images:
        return pack_folder(valid_dir, config.scale, lr_dir, packed), []
    if packed:  # perhaps with copies of images that are gone
        with suppress(DataError):
            return pack_folder(valid_dir, config.scale, lr_dir, packed), []
    print(f"No validation: no images in {valid_dir}; --valid-dir names another folder.")
    return None, found.others + (find_images(lr_dir).others if lr_dir else [])


# ------------------------------------------------------------------- what is left out, or doubtful


def remarks_at_scale_1(config: Config, valid: Pack | None) -> list[str]:
    """Where LR images would be HR images."""
    if config.scale > 1 or config.degradation.level != "none":
        return []
    if not config.lr_dir:
        return [
            "There is nothing to learn: at scale 1 LR images are HR images, unless "
            "--degradation.level or --lr-dir makes them others"
        ]
    if valid is None or config.valid_lr_dir:
        return []
    return [
        "Validation says nothing: at scale 1 it compares HR images with themselves; --valid-lr-dir "
        "gives it LR images, --valid-dir '' leaves it out"
    ]


def other_images(packs: list[Pack], before: Mapping[str, str]) -> list[str]:
    """Where a run has not the images any more that it had: it is not the same from there on.

    Args:
        packs: of the run that goes on.
        before: those it had, as `load_data` gave them.
    """
    had, now = set(before.values()) - {""}, {pack.contents for pack in packs}
    return [
        f"{pack.folder}: the run goes on with other images than it had until now"
        for pack in packs
        if had - now and pack.contents not in had
    ]


def remarks_on(pack: Pack) -> list[str]:
    """What was found while the images were read, a line for each kind."""
    by_reason: dict[str, list[tuple[str, str]]] = {}
    for name, reason in pack.index["unreadable"]:
        by_reason.setdefault(re.sub(r"\d+", "0", reason), []).append((name, reason))
    remarks = [
        f"Left out of {pack.folder}: {len(alike):,} that cannot be read ({alike[0][1]}): "
        f"{listed([name for name, _ in alike])}"
        for alike in by_reason.values()
    ]
    if doubtful := [f"{name} {words}" for name, words in pack.index["doubtful"]]:
        remarks.append(
            f"Look at these pairs of {pack.folder}: {len(doubtful):,} of {len(pack):,} HR images "
            "hardly look like their LR images. Their correlation (of a right pair: above "
            f"{LOWEST_FIT}, and no better turned): {listed(doubtful)}. A wrong pair spoils training"
        )
    return remarks


def sized(pack: Pack, i: int) -> str:
    height, width = pack.size(i)
    return f"{pack.folder / pack.name(i)} ({width}x{height})"


def every_image(packs: list[Pack]) -> list[tuple[Pack, int]]:
    return [(pack, i) for pack in packs for i in range(len(pack))]


def side(image: tuple[Pack, int]) -> int:
    """The shorter one, which a crop has to fit."""
    pack, i = image
    return min(pack.size(i))


def below_crop(config: Config, name: str, packs: list[Pack]) -> str:
    """Which images a phase leaves out because its crop is larger; empty if it uses them all."""
    patch, images = config.phase(name).patch, every_image(packs)
    small = sorted((image for image in images if side(image) < patch), key=side, reverse=True)
    if not small or len(small) == len(images):
        return ""
    # A smaller crop is good advice if it lets in half of what is left out now.
    fitting = largest_patch(config, name, side(small[len(small) // 2]))
    gained = sum(side(image) >= fitting for image in small) if fitting else 0
    return (
        f"Left out of the {name} phase: {len(small):,} of {len(images):,} images, smaller than its "
        f"{patch}x{patch} crop: {listed([sized(*image) for image in small])}"
        + (f". {patch_flag(config, name, fitting)} would use {gained:,} of them" if gained else "")
    )


def refuse_small(config: Config, name: str, packs: list[Pack]) -> None:
    """Raise if a phase has not a single image; say what would give it some."""
    patch, images = config.phase(name).patch, every_image(packs)
    if not images:
        raise DataError(f"no training image in {listed(config.train_dir)} can be read")
    largest = max(images, key=side)
    if side(largest) >= patch:
        return
    fitting = largest_patch(config, name, side(largest))
    flag = f"{patch_flag(config, name, fitting)}, or " if fitting else ""
    raise DataError(
        f"no training image is at least {patch}x{patch} pixels, the crop of the {name} phase: of "
        f"{len(images):,}, the largest is {sized(*largest)}. Give {flag}larger images"
    )


def patch_flag(config: Config, name: str, patch: int | None) -> str:
    """For another crop, which a phase with a VGG discriminator that has begun refuses."""
    built = config.phase(name).adversarial > 0 and config.discriminator == "vgg"
    return f"--{name}.patch {patch}" + (" (before that phase's first step)" if built else "")


def largest_patch(config: Config, name: str, limit: int) -> int | None:
    """The largest crop up to `limit` pixels that the phase can have, if there is one."""
    for patch in range(limit, 0, -1):
        changed: dict = {name: dataclasses.replace(config.phase(name), patch=patch)}
        with suppress(ValueError):
            return dataclasses.replace(config, **changed).phase(name).patch
    return None


def unscored(valid: Pack) -> list[str]:
    smallest = smallest_scored(valid.scale)
    if small := [sized(*image) for image in every_image([valid]) if side(image) < smallest]:
        return [f"Left out of validation: {len(small):,} too small to be scored: {listed(small)}"]
    return []


def trained_on(valid: Pack, scored: list[int], packs: list[Pack]) -> list[str]:
    trained = {pack.digest(i): pack.folder / pack.name(i) for pack, i in every_image(packs)}
    known = [i for i in scored if valid.digest(i) in trained]
    if not known:
        return []
    pairs = [f"{valid.folder / valid.name(i)} is {trained[valid.digest(i)]}" for i in known]
    return [
        f"Scores will look too good: {len(known):,} of {len(scored):,} validation images are "
        f"trained on, too: {listed(pairs)}"
    ]
