"""What a run trains and validates on; what is left out is named before the first step."""

from pathlib import Path

from config import PHASES, Config
from dataset import (
    DEMO_DIR,
    CropStream,
    DataError,
    Pack,
    pack_folder,
    write_demo_photographs,
)
from images.kinds import find_images
from training.validation import chosen, smallest_scored

NO_DATA = """\
no images in data/train. Put yours there and a few others into data/valid, or name other folders:
  python train.py --train-dir DIR --valid-dir DIR; or fetch DIV2K (4 GB): python dataset.py div2k
  or see it work on photographs that are here already: python train.py --preset demo"""


def uses_demo(config: Config) -> bool:
    return any(DEMO_DIR in Path(name).parents for name in (*config.train_dir, config.valid_dir))


def prepare_folders(config: Config) -> None:
    """Write the demo's photographs if this run needs them; without any data, say how to get some.

    Raises:
        DataError: no images where they are looked for by default.
    """
    if uses_demo(config):
        write_demo_photographs()
    if config.train_dir == Config.train_dir and not find_images(config.train_dir[0]).images:
        raise DataError(NO_DATA)


def load_data(config: Config) -> tuple[dict[str, CropStream], Pack | None]:
    """The crops of each phase and the validation images; every file is read, or known, by now.

    Raises:
        DataError: no image is large enough for a phase's crop, or for validation.
    """
    lr_dirs = config.lr_dir or [None] * len(config.train_dir)
    packs = [
        pack_folder(folder, config.scale, lr_dir)
        for folder, lr_dir in zip(config.train_dir, lr_dirs, strict=True)
    ]
    valid = None
    if config.valid_dir == Config.valid_dir and not find_images(config.valid_dir).images:
        print(f"No validation: no images in {config.valid_dir}; --valid-dir names another folder.")
    elif config.valid_dir:
        valid = pack_folder(config.valid_dir, config.scale, config.valid_lr_dir or None)
    patches = {name: getattr(config, name).patch for name in PHASES if getattr(config, name).steps}
    folders = [
        *config.train_dir,
        *config.lr_dir,
        *filter(None, (config.valid_dir, config.valid_lr_dir)),
    ]
    not_read = [line for folder in folders for line in find_images(folder).others]
    if left_out := [*not_read, *unused_images(packs, valid, patches)]:
        print(f"Left out ({len(left_out)}):", *left_out, sep="\n  ")
    if valid and not chosen(valid, config.val_images):
        raise DataError(f"{config.valid_dir}: no image is large enough to be scored")
    return {name: CropStream(packs, patch, config.seed) for name, patch in patches.items()}, valid


def unused_images(packs: list[Pack], valid: Pack | None, patches: dict[str, int]) -> list[str]:
    """Each image that a phase or the validation leaves out, and why."""
    reasons = [reason for pack in packs for reason in pack.index["unreadable"]]
    for pack in packs:
        for name, patch in patches.items():
            small = pack.below(patch)
            reasons += [f"{image}, below the crop of the {name} phase" for image in small]
    if valid:
        small = valid.below(smallest_scored(valid.index["scale"]))
        reasons += valid.index["unreadable"]
        reasons += [f"{image}, too small to be scored" for image in small]
    return list(dict.fromkeys(reasons))
