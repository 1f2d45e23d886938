"""Images in folders: what is written is read, in whichever arrangement."""

import numpy as np
import pytest
import torch
from PIL import Image

from weightspace import datasets
from weightspace.errors import DatasetError
from weightspace.image_folders import is_image_folder, read_image_folder

SIZE = (6, 5)


def write(folder, count, *, channels=1, seed=0):
    """Random images, and what they hold."""
    folder.mkdir(parents=True)
    shape = SIZE if channels == 1 else (*SIZE, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return pixels


def test_a_folder_a_class_is_cut_into_training_and_test_images(tmp_path):
    square, circle = write(tmp_path / "square", 8, seed=1), write(tmp_path / "circle", 9, seed=2)
    (tmp_path / "notes.txt").write_text("no image")
    assert is_image_folder(tmp_path)
    found = read_image_folder(tmp_path)
    assert found["y_train"].tolist() == [0] * 7 + [1] * 6 and found["y_test"].tolist() == [0] * 2 + [1] * 2
    assert np.array_equal(found["x_test"][:, 0], np.concatenate([circle[3::4], square[3::4]]))
    rest = [np.delete(some, slice(3, None, 4), axis=0) for some in (circle, square)]
    assert np.array_equal(found["x_train"][:, 0], np.concatenate(rest))


def test_given_parts_are_kept_and_grey_images_among_coloured_ones_get_three_channels(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / part / "a", 4, channels=3)
        grey = write(tmp_path / part / "b", 4)
    found = read_image_folder(tmp_path)
    assert found["x_train"].shape == (8, 3, *SIZE) and found["y_test"].tolist() == [0] * 4 + [1] * 4
    assert all(np.array_equal(found["x_test"][4:, channel], grey) for channel in range(3))


def test_data_sets_are_loaded_from_them(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / "shapes" / name, 16, seed=ord(name))
    data = datasets.load("shapes", tmp_path, side=4)
    assert (data.classes, data.image_shape) == (3, (1, 4, 4))
    assert len(data.train_labels) + len(data.validation_labels) == 36 and len(data.test_labels) == 12
    again = datasets.load(str(tmp_path / "shapes"), side=4)
    assert torch.equal(again.train_images, data.train_images)


def test_damaged_and_uneven_images_are_refused(tmp_path):
    write(tmp_path / "a", 4)
    write(tmp_path / "b", 4)
    (tmp_path / "b" / "00.png").write_bytes(b"not an image")
    with pytest.raises(DatasetError, match=r"00\.png cannot be read"):
        read_image_folder(tmp_path)
    Image.new("L", (7, 7)).save(tmp_path / "b" / "00.png")
    with pytest.raises(DatasetError, match=r"is 7x7, and .* is 6x5"):
        read_image_folder(tmp_path)
    write(tmp_path / "parts" / "train" / "a", 2)
    write(tmp_path / "parts" / "test" / "b", 2)
    with pytest.raises(DatasetError, match="both must agree"):
        read_image_folder(tmp_path / "parts")
