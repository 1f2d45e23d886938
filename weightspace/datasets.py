"""Images and labels that the networks of a zoo are trained, selected and tested on.

`digits` comes with scikit-learn; everything else is read from files that the user has: IDX files (MNIST and its
relatives, plain or `.gz`), `.npz` files, and images in folders, one a class. Nothing is downloaded, and nothing
unpickled.

Axes: n training image, v validation image, t test image, c channel, h height, w width.
"""

import gzip
import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from weightspace.errors import DatasetError, unknown_name
from weightspace.image_folders import is_image_folder, read_image_folder

ROOT_VARIABLE = "WEIGHTSPACE_DATA"
VALIDATION_FRACTION = 1 / 6
"""Share of a training file that becomes the validation part: 10 000 of MNIST's 60 000 images."""
DIGITS_VALIDATION, DIGITS_TEST = 297, 500
"""Sizes of the parts cut from the 1797 digits; 1000 remain for training."""
IDX_NAMES = ("fashion_mnist", "kmnist_test", "mnist")
NPZ_NAMES = ("cifar10", "cifar100", "emnist_letters", "eurosat", "stl10", "svhn", "tiny_imagenet", "usps")
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
"""Arrays by the keys of an `.npz` file: `x_train`, `y_train`, `x_test`, `y_test`."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images and labels in three parts, standardised with the mean and deviation of the training part.

    >>> load("digits")
    Dataset(name='digits', classes=10)
    """

    name: str
    """The name or path it was loaded by."""
    classes: int
    """Labels are 0 to classes - 1."""
    train_images: Float[Tensor, "n c h w"] = field(repr=False)
    train_labels: Int64[Tensor, " n"] = field(repr=False)
    validation_images: Float[Tensor, "v c h w"] = field(repr=False)
    validation_labels: Int64[Tensor, " v"] = field(repr=False)
    test_images: Float[Tensor, "t c h w"] = field(repr=False)
    test_labels: Int64[Tensor, " t"] = field(repr=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """Short hash of all images and labels: equal data have equal digests, whatever their name or file."""
        return _digest(
            *(self.train_images, self.train_labels, self.validation_images, self.validation_labels),
            *(self.test_images, self.test_labels),
        )


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images as they are, for networks that each fit one of them.

    >>> load_pixels("digits", limit=5).images.shape
    torch.Size([5, 1, 8, 8])
    """

    name: str
    """The name or path it was loaded by."""
    images: Float[Tensor, "n c h w"] = field(repr=False)
    """Values in [0, 1]."""
    labels: Int64[Tensor, " n"] = field(repr=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """Short hash of all images and labels."""
        return _digest(self.images, self.labels)


def _digest(*parts: Tensor) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(str(tuple(part.shape)).encode())
        sha.update(part.contiguous().numpy().data)
    return sha.hexdigest()[:12]


def names() -> list[str]:
    """Names that `load` knows; paths to folders and `.npz` files work too.

    >>> "digits" in names()
    True
    """
    return sorted(("digits", *IDX_NAMES, *NPZ_NAMES))


def load(
    name: str,
    root: Path | None = None,
    *,
    train_limit: int | None = None,
    seed: int = 0,
    grey: bool = False,
    side: int | None = None,
    crop: bool = False,
) -> Dataset:
    """Load a data set as standardised float32 images in a training, a validation and a test part.

    The validation part is a stratified sixth of the training file. `digits` is cut into 1000 training, 297 validation
    and 500 test images. A set with a test part only must say so by a name that ends in `_test`; half of it then
    serves as training file and half as test part. Each cut is stratified and depends on the seed alone.

    Args:
        name: A name of `names()`, of a folder or `.npz` file in `root`, or a path to one of them.
        root: Folder with the data files; the environment variable `WEIGHTSPACE_DATA` if left out.
        train_limit: Keep only so many training images. Smaller limits are subsets of larger ones, and neither the
            other parts nor the standardisation depend on it.
        seed: Seed of the cuts.
        grey: Make colour images grey, by luminance.
        side: Height and width of the images; as they are in the files when left out.
        crop: Cut the middle out instead of resizing.

    Returns:
        The data set; the test part keeps the order of its file.

    Raises:
        DatasetError: A file is missing or damaged, images and labels do not fit, or the limit is out of range.
        UnknownName: There is no such data set.

    >>> digits = load("digits")
    >>> digits.image_shape, len(digits.train_labels), len(digits.validation_labels), len(digits.test_labels)
    ((1, 8, 8), 1000, 297, 500)
    """
    arrays = _digits() if name == "digits" else _read(name, root)
    for part in ("train", "test"):
        if f"x_{part}" in arrays:
            images, arrays[f"y_{part}"] = _checked(name, part, arrays[f"x_{part}"], arrays[f"y_{part}"])
            arrays[f"x_{part}"] = _shaped(name, images, grey, side, crop)

    rng = np.random.default_rng(seed)
    if "x_train" in arrays:
        images, labels = arrays["x_train"], arrays["y_train"]
        test_images, test_labels = arrays["x_test"], arrays["y_test"]
        order = stratified_order(labels, rng)
    else:
        images, labels = arrays["x_test"], arrays["y_test"]
        count = DIGITS_TEST if name == "digits" else len(labels) // 2
        order, test = np.split(stratified_order(labels, rng), [len(labels) - count])
        test_images, test_labels = images[np.sort(test)], labels[np.sort(test)]
    count = DIGITS_VALIDATION if name == "digits" else round(VALIDATION_FRACTION * len(order))
    train, validation = np.split(order, [len(order) - count])

    classes = _classes(name, labels[train], {"validation": labels[validation], "test": test_labels})
    if images.shape[1:] != test_images.shape[1:]:
        raise DatasetError(
            f"data set {name!r}: training images have shape {images.shape[1:]}, test images {test_images.shape[1:]}; "
            "both must agree"
        )
    if train_limit is not None and not classes <= train_limit <= len(train):
        raise DatasetError(
            f"train_limit {train_limit} for data set {name!r} must lie between {classes}, its number of classes, "
            f"and {len(train)}, its number of training images"
        )
    mean, std = _statistics(name, images[train])
    kept = train[:train_limit]
    return Dataset(
        name=name,
        classes=classes,
        train_images=_standardised(images[kept], mean, std),
        train_labels=torch.from_numpy(labels[kept]),
        validation_images=_standardised(images[validation], mean, std),
        validation_labels=torch.from_numpy(labels[validation]),
        test_images=_standardised(test_images, mean, std),
        test_labels=torch.from_numpy(test_labels),
    )


def some_classes(data: Dataset, classes: Sequence[int]) -> Dataset:
    """The images of some classes; label i stands for the i-th of these classes, in the order given.

    Standardisation stays that of the whole data set, and so does the order of the images.

    Raises:
        DatasetError: There are fewer than two classes, one twice, or one that the data set lacks.

    >>> some_classes(load("digits"), (7, 1)).classes
    2
    """
    known, wanted = set(range(data.classes)), list(classes)
    if len(wanted) < 2 or len(set(wanted)) < len(wanted) or not known.issuperset(wanted):
        raise DatasetError(
            f"a task needs at least two different classes among 0 to {data.classes - 1} of data set {data.name!r}, "
            f"got {wanted}"
        )
    new = torch.full((data.classes,), -1)
    new[wanted] = torch.arange(len(wanted))
    parts: dict[str, Tensor] = {}
    for part in ("train", "validation", "test"):
        labels = new[getattr(data, f"{part}_labels")]
        parts |= {f"{part}_images": getattr(data, f"{part}_images")[labels >= 0]}
        parts |= {f"{part}_labels": labels[labels >= 0]}
    return Dataset(name=f"{data.name} {' '.join(map(str, wanted))}", classes=len(wanted), **parts)


def load_pixels(
    name: str,
    root: Path | None = None,
    *,
    limit: int | None = None,
    grey: bool = False,
    side: int | None = None,
    crop: bool = False,
) -> Pixels:
    """Load images with values in [0, 1]: those of the training file, then those of the test file.

    Bytes are divided by 255; other numbers are moved and scaled so that the training file fills the range.

    Args:
        name: As for `load`; so are `root`, `grey`, `side` and `crop`.
        limit: Only the first so many images.

    Raises:
        DatasetError: A file is missing or damaged, or the limit is out of range.
        UnknownName: There is no such data set.
    """
    arrays = _digits() if name == "digits" else _read(name, root)
    parts = [part for part in ("train", "test") if f"x_{part}" in arrays]
    checked = [_checked(name, part, arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in parts]
    if len({images.shape[1:] for images, _ in checked}) > 1:
        raise DatasetError(f"data set {name!r}: training and test images have different shapes; both must agree")
    labels = np.concatenate([labels for _, labels in checked])
    if limit is not None and not 1 <= limit <= len(labels):
        raise DatasetError(f"limit {limit} for data set {name!r} must lie between 1 and {len(labels)}, its images")
    reference = checked[0][0]
    low, high = (0.0, 255.0) if reference.dtype == np.uint8 else (float(reference.min()), float(reference.max()))
    if low == high:
        raise DatasetError(f"all pixels of data set {name!r} are equal")
    images = np.concatenate([images for images, _ in checked])[:limit]
    images = (_shaped(name, images, grey, side, crop).astype(np.float32) - low) / (high - low)
    return Pixels(name=name, images=torch.from_numpy(images.clip(0, 1)), labels=torch.from_numpy(labels[:limit]))


def stratified_order(labels: Array, rng: np.random.Generator) -> Array:
    """A random order in which every prefix holds the classes in proportion, each rounded up.

    Args:
        labels: One class an image, `[n]`.
        rng: Draws the order within each class and among classes.

    Returns:
        Indices `[n]`.

    >>> order = stratified_order(np.array([0] * 6 + [1] * 3), np.random.default_rng(0))
    >>> sorted([0, 0, 0, 0, 0, 0, 1, 1, 1][i] for i in order[:3])
    [0, 0, 1]
    """
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    share = rank / np.repeat(counts, counts)
    return by_class[np.lexsort((rng.random(len(labels)), share))]


def _digits() -> Arrays:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return {"x_test": bunch.images, "y_test": bunch.target}


def _read(name: str, root: Path | None) -> Arrays:
    """Arrays of the training and test file, or of the test file alone where the name allows it."""
    if root is None and os.environ.get(ROOT_VARIABLE):
        root = Path(os.environ[ROOT_VARIABLE])
    if name in names():
        if root is None:
            raise DatasetError(f"data set {name!r} needs its files: pass --data-root DIR or set {ROOT_VARIABLE}")
        if not root.exists():
            raise DatasetError(f"there is no data root {root}: pass --data-root DIR or set {ROOT_VARIABLE}")
        place = f"{root / name} or {root}"
        arrays = _read_files(name, root)
    else:
        place, arrays = name, _read_path(name, root)
    needed = {"x_train", "y_train", "x_test", "y_test"}
    if Path(name).stem.endswith("_test") and not arrays.keys() & {"x_train", "y_train"}:
        needed = {"x_test", "y_test"}
    if missing := sorted(needed - arrays.keys()):
        files = [f"{key} ({_idx_file(key)}[.gz] in an IDX folder)" for key in missing]
        raise DatasetError(f"data set {name!r} in {place} lacks {', '.join(files)}")
    return arrays


def _read_files(name: str, root: Path) -> Arrays:
    """A named set below the data root."""
    if root.is_file():
        return _npz([root])
    if (root / name).is_dir():
        return _folder(root / name)
    if name in IDX_NAMES:
        return _folder(root)
    return _npz(sorted(p for p in root.glob("*.npz") if p.stem == name or p.stem.startswith(f"{name}_")))


def _read_path(name: str, root: Path | None) -> Arrays:
    """A set given by its path, or by the name of a folder or file in the data root."""
    places = [Path(name)] + ([root / name, root / f"{name}.npz"] if root is not None else [])
    for place in places:
        if place.is_dir():
            return _folder(place)
        if place.is_file():
            return _npz([place])
    if name.endswith(".npz") or Path(name).name != name:
        raise DatasetError(
            f"there is no data set {name}: give an existing .npz file or a folder of images, IDX or .npz files"
        )
    raise unknown_name("data set", name, names())


def _folder(folder: Path) -> Arrays:
    """Everything in a folder: IDX files by their standard names, in it or in its `raw` folder; or images; or `.npz`."""
    arrays = {}
    for key in ("x_train", "y_train", "x_test", "y_test"):
        file = _idx_file(key)
        for path in (folder / file, folder / f"{file}.gz", folder / "raw" / file, folder / "raw" / f"{file}.gz"):
            if path.is_file():
                arrays[key] = _idx(path)
                break
    if not arrays and is_image_folder(folder):
        return read_image_folder(folder)
    return arrays or _npz(sorted(folder.glob("*.npz")))


def _idx_file(key: str) -> str:
    part = "train" if key.endswith("train") else "t10k"
    return f"{part}-images-idx3-ubyte" if key.startswith("x") else f"{part}-labels-idx1-ubyte"


def _idx(path: Path) -> Array:
    """An array from an IDX file: two zero bytes, a type, a number of axes, big-endian sizes, values."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read and is probably truncated ({error}); get it again") from error
    axes = 1 if "labels" in path.name else 3
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
        raise DatasetError(f"{path} is not an IDX file: it begins with {data[:4].hex(' ') or 'nothing'}")
    if data[3] != axes:
        raise DatasetError(f"{path} has {data[3]} axes and should have {axes}: images and labels may be exchanged")
    start, dtype = 4 + 4 * axes, np.dtype(IDX_TYPES[data[2]])
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4))
    expected = start + prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise DatasetError(f"{path} has {len(data)} bytes and its header promises {expected}; get it again")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _npz(paths: list[Path]) -> Arrays:
    """The four arrays from one `.npz` file or from several that each hold some of them."""
    arrays: Arrays = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                if not zipfile.is_zipfile(file):
                    raise DatasetError(f"{path} is not an .npz file, or is truncated; get it again")
            with np.load(path, allow_pickle=False) as content:
                found = {key: content[key] for key in ("x_train", "y_train", "x_test", "y_test") if key in content}
                keys = content.files
        except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
            raise DatasetError(f"{path} cannot be read ({error}); get it again") from error
        if not found:
            raise DatasetError(
                f"{path} holds {', '.join(keys) or 'nothing'}; x_train, y_train, x_test, y_test are read"
            )
        if twice := sorted(arrays.keys() & found.keys()):
            raise DatasetError(f"{path} holds {twice[0]} a second time; leave one of {', '.join(map(str, paths))}")
        arrays |= found
    return arrays


def _checked(name: str, part: str, images: Array, labels: Array) -> tuple[Array, Array]:
    """Images as `[n, c, h, w]` and labels as int64 `[n]`."""
    where = f"the {part} part of data set {name!r}"
    if images.dtype.kind not in "buif" or labels.dtype.kind not in "ui":
        raise DatasetError(
            f"{where} needs numbers as images and integers as labels, got {images.dtype} and {labels.dtype}"
        )
    if images.ndim not in (3, 4) or labels.ndim != 1:
        raise DatasetError(
            f"{where} needs images [n, h, w] or [n, c, h, w] and labels [n], "
            f"got shapes {images.shape} and {labels.shape}"
        )
    if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        raise DatasetError(f"{where} has shape {images.shape}, channels last; transpose the images to [n, c, h, w]")
    if len(images) != len(labels):
        raise DatasetError(f"{where} has {len(images)} images and {len(labels)} labels; the counts must agree")
    if images.size == 0:
        raise DatasetError(f"{where} is empty: its images have shape {images.shape}")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DatasetError(f"{where} has NaN or infinite pixels")
    return images if images.ndim == 4 else images[:, None], labels.astype(np.int64)


def _shaped(name: str, images: Array, grey: bool, side: int | None, crop: bool) -> Array:
    """The images `[n, c, h, w]` in grey and in another size, where that is asked for."""
    if grey and images.shape[1] == 3:
        images = np.tensordot(images, np.array(LUMINANCE, np.float32), axes=(1, 0))[:, None]
    if side is None or images.shape[2:] == (side, side):
        return images
    height, width = images.shape[2:]
    if side < 1 or (crop and side > min(height, width)):
        raise DatasetError(f"images of data set {name!r} are {height}x{width}: a square of {side} cannot be cut out")
    if crop:
        top, left = (height - side) // 2, (width - side) // 2
        return images[:, :, top : top + side, left : left + side]
    tensor = torch.from_numpy(images.astype(np.float32))
    return F.interpolate(tensor, (side, side), mode="bilinear", antialias=True, align_corners=False).numpy()


def _classes(name: str, train: Array, others: Arrays) -> int:
    """Number of classes, when the training labels are all of 0 to classes - 1 and no other part has more."""
    found = np.unique(train)
    classes = len(found)
    if classes < 2 or not np.array_equal(found, np.arange(classes)):
        raise DatasetError(
            f"the training labels of data set {name!r} must be 0 to k - 1 for k >= 2 classes with an image each, "
            f"got {classes} values from {found[0]} to {found[-1]}"
        )
    for part, labels in others.items():
        if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            wrong = int(labels.min() if labels.min() < 0 else labels.max())
            raise DatasetError(f"the {part} part of data set {name!r} has label {wrong}, outside 0 to {classes - 1}")
    return classes


def _statistics(name: str, images: Array) -> tuple[Array, Array]:
    mean = images.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    std = images.std(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    if not (std > 0).all():
        raise DatasetError(f"the training images of data set {name!r} have a channel in which all pixels are equal")
    return mean, std


def _standardised(images: Array, mean: Array, std: Array) -> Tensor:
    return torch.from_numpy((images.astype(np.float32) - mean.astype(np.float32)) / std.astype(np.float32))
