"""Images in folders, a folder a class, as most tools write them.

```
shapes/circle/0001.png …          or          shapes/train/circle/0001.png …
shapes/square/0001.png …                      shapes/test/circle/0001.png …
```

Classes are numbered in the order of their names. Without folders `train` and `test`, a quarter of each class, chosen by
the names of its files, is the test part.

Axes: n image, c channel, h height, w width.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from weightspace.errors import DatasetError, MissingExtra

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
TEST_SHARE = 4
"""One image of so many is a test image."""


def is_image_folder(folder: Path) -> bool:
    """Whether there are images in folders of this folder.

    >>> is_image_folder(Path("nowhere"))
    False
    """
    return bool(_classes(folder) or _classes(folder / "train"))


def read_image_folder(folder: Path) -> dict[str, np.ndarray]:
    """Bytes `[n, c, h, w]` and classes `[n]` of both parts, by the keys `x_train`, `y_train`, `x_test` and `y_test`.

    Images are grey where all of them are, and of three channels otherwise.

    Raises:
        DatasetError: A file cannot be read, sizes differ, or the test part has other classes.
        MissingExtra: Pillow is not installed.
    """
    classes = _classes(folder)
    if classes:
        files = {name: sorted(_images(folder / name)) for name in classes}
        test = [path for paths in files.values() for path in paths[TEST_SHARE - 1 :: TEST_SHARE]]
        train = [path for paths in files.values() for path in paths if path not in set(test)]
    else:
        classes = _classes(folder / "train")
        if (found := _classes(folder / "test")) != classes:
            raise DatasetError(f"{folder} has classes {classes} in train and {found} in test; both must agree")
        train, test = ([p for name in classes for p in sorted(_images(folder / part / name))] for part in _PARTS)
    pixels = _read([*train, *test])
    number = {name: i for i, name in enumerate(classes)}
    labels: Int64[np.ndarray, " n"] = np.array([number[path.parent.name] for path in (*train, *test)], np.int64)
    cut = len(train)
    return {"x_train": pixels[:cut], "y_train": labels[:cut], "x_test": pixels[cut:], "y_test": labels[cut:]}


_PARTS = ("train", "test")


def _classes(folder: Path) -> list[str]:
    """Names of the folders that hold images."""
    if not folder.is_dir():
        return []
    return sorted(place.name for place in folder.iterdir() if place.is_dir() and next(_images(place), None))


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _read(paths: list[Path]) -> UInt8[np.ndarray, "n c h w"]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra(
            "reading image files needs Pillow, which is not installed: pip install 'weightspace[images]'"
        ) from error
    images = []
    for path in paths:
        try:
            with Image.open(path) as file:
                images.append(np.asarray(file if file.mode in ("L", "RGB") else file.convert("RGB")))
        except (OSError, UnidentifiedImageError) as error:
            raise DatasetError(f"{path} cannot be read as an image ({error}); get it again or take it away") from error
        if images[-1].shape[:2] != images[0].shape[:2]:
            sizes = ["x".join(map(str, image.shape[:2])) for image in (images[-1], images[0])]
            raise DatasetError(f"{path} is {sizes[0]}, and {paths[0]} is {sizes[1]}; bring all images to one size")
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
        return np.stack(images).transpose(0, 3, 1, 2)
    return np.stack(images)[:, None]
