"""Data sets: exact values through independent writers, the laws of the cuts, and one clear error for each damage.

Axes: n image, c channel, h height, w width.
"""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightspace import datasets
from weightspace.errors import DatasetError, UnknownName

NO_IMAGES = np.zeros((0, 4, 4), np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    """The IDX format written out by hand: magic, sizes, values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + bytes(array.ravel().tolist())


def images_of(labels: np.ndarray, seed: int, shape: tuple[int, ...] = (4, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (len(labels), *shape), dtype=np.uint8)


@pytest.fixture
def parts() -> dict[str, np.ndarray]:
    """120 training and 30 test images of three classes."""
    y_train, y_test = np.arange(120, dtype=np.uint8) % 3, np.arange(30, dtype=np.uint8) % 3
    return {"x_train": images_of(y_train, 0), "y_train": y_train, "x_test": images_of(y_test, 1), "y_test": y_test}


def write_idx(folder: Path, parts: dict[str, np.ndarray], compressed: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = {"x_train": "train-images-idx3", "y_train": "train-labels-idx1"}
    file |= {"x_test": "t10k-images-idx3", "y_test": "t10k-labels-idx1"}
    for key, array in parts.items():
        data = idx_bytes(array)
        path = folder / f"{file[key]}-ubyte{'.gz' if compressed else ''}"
        path.write_bytes(gzip.compress(data) if compressed else data)
    return folder


def all_images(data: datasets.Dataset) -> torch.Tensor:
    return torch.cat([data.train_images, data.validation_images, data.test_images])


def is_prefix_of(short: torch.Tensor, long: torch.Tensor) -> bool:
    return torch.equal(short, long[: len(short)])


def test_digits_are_cut_into_disjoint_parts_that_hold_every_image_once():
    from sklearn.datasets import load_digits

    data = datasets.load("digits", seed=3)
    assert (len(data.train_labels), len(data.validation_labels), len(data.test_labels)) == (1000, 297, 500)
    raw = load_digits().images
    pooled = all_images(data)[:, 0]
    # Standardisation is affine and increasing: recover it from the extremes (0 and 16) and get the integers back.
    recovered = ((pooled - pooled.min()) / (pooled.max() - pooled.min()) * 16).round().numpy()
    assert sorted(map(bytes, recovered.astype(np.uint8))) == sorted(map(bytes, raw.astype(np.uint8)))


def test_digits_parts_are_stratified():
    data = datasets.load("digits")
    share = torch.bincount(torch.cat([data.train_labels, data.validation_labels, data.test_labels])) / 1797
    for labels in (data.train_labels, data.validation_labels, data.test_labels):
        # Each of the two cuts rounds a class by less than one image.
        assert (torch.bincount(labels, minlength=10) - share * len(labels)).abs().max() < 2


def test_the_seed_decides_the_cut():
    assert datasets.load("digits", seed=1).digest == datasets.load("digits", seed=1).digest
    assert datasets.load("digits", seed=1).digest != datasets.load("digits", seed=2).digest


def test_training_part_has_mean_zero_and_deviation_one(tmp_path, parts):
    # Two channels of very different scale: each is standardised by itself.
    scales = np.array([1.0, 50.0])[:, None, None]
    for key in ("x_train", "x_test"):
        parts[key] = parts[key][:, None] * scales + scales
    np.savez(tmp_path / "two.npz", **parts)
    train = datasets.load(str(tmp_path / "two.npz")).train_images
    # float32 sums over 2000 values
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_other_parts_are_standardised_with_the_training_part(tmp_path, parts):
    np.savez(tmp_path / "a.npz", **parts)
    before = datasets.load(str(tmp_path / "a.npz"))
    parts["x_test"] = (parts["x_test"] // 2).astype(np.uint8)
    np.savez(tmp_path / "a.npz", **parts)
    after = datasets.load(str(tmp_path / "a.npz"))
    assert torch.equal(before.train_images, after.train_images)
    assert after.test_images.std() < 0.7 * before.test_images.std()


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    prefix=st.integers(0, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_prefix_of_the_stratified_order_is_proportional(counts, prefix, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    order = datasets.stratified_order(labels, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(labels)))
    prefix = min(prefix, len(labels))
    got = np.bincount(labels[order[:prefix]], minlength=len(counts))
    exact = prefix * np.array(counts) / len(labels)
    # The prefix ends at one share t for all classes, ceil(t * count) or one less each: off by less than the classes.
    assert np.abs(got - exact).max() < len(counts)
    assert prefix < len(counts) or got.min() >= 1


def test_classes_of_equal_size_come_in_random_order():
    first = [datasets.stratified_order(np.arange(4), np.random.default_rng(seed))[0] for seed in range(200)]
    # Each of 4 classes 50 times; 5 standard errors of a binomial with 200 draws are 31.
    assert np.abs(np.bincount(first, minlength=4) - 50).max() <= 31


@pytest.mark.parametrize("key", ["train", "test"])
def test_labels_stay_with_their_images(tmp_path, parts, key):
    """Each image shows its label: nothing else varies."""
    labels = np.random.default_rng(0).permutation(parts["y_train"])
    shown = {f"x_{key}": np.broadcast_to(labels[:, None, None], (120, 2, 2)), f"y_{key}": labels}
    if key == "train":
        shown |= {"x_test": np.broadcast_to(parts["y_test"][:, None, None], (30, 2, 2)), "y_test": parts["y_test"]}
    np.savez(tmp_path / "shown_test.npz", **shown)
    data = datasets.load("shown_test", tmp_path)
    values = data.train_images.unique()
    for part in ("train", "validation", "test"):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        assert len(labels) and torch.equal(images[:, 0, 0, 0], values[labels])


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_folder_and_npz_hold_the_same_data(tmp_path, parts, compressed):
    write_idx(tmp_path / "mnist", parts, compressed)
    np.savez_compressed(tmp_path / "usps.npz", **parts)
    data = datasets.load("mnist", tmp_path)
    assert data.image_shape == (1, 4, 5) and data.classes == 3
    assert len(data.validation_labels) == 20 and len(data.train_labels) == 100  # a sixth of 120
    assert torch.equal(data.test_labels, torch.arange(30) % 3)
    same = [
        datasets.load("usps", tmp_path),
        datasets.load("usps", tmp_path / "usps.npz"),
        datasets.load("mnist", tmp_path / "mnist"),
        datasets.load(str(tmp_path / "mnist")),
        datasets.load(str(tmp_path / "usps.npz")),
    ]
    assert {other.digest for other in same} == {data.digest}


def test_idx_files_may_lie_in_a_raw_folder_as_torchvision_leaves_them(tmp_path, parts):
    write_idx(tmp_path / "mnist" / "raw", parts, compressed=False)
    assert datasets.load("mnist", tmp_path).classes == 3


def test_npz_parts_in_two_files_are_joined(tmp_path, parts):
    np.savez(tmp_path / "cifar10_train_first.npz", x_train=parts["x_train"], y_train=parts["y_train"])
    np.savez(tmp_path / "cifar10_test.npz", x_test=parts["x_test"], y_test=parts["y_test"])
    np.savez(tmp_path / "whole.npz", **parts)
    assert datasets.load("cifar10", tmp_path).digest == datasets.load("whole", tmp_path).digest


def test_environment_variable_is_the_default_root(tmp_path, parts, monkeypatch):
    write_idx(tmp_path / "mnist", parts, compressed=True)
    monkeypatch.setenv("WEIGHTSPACE_DATA", str(tmp_path))
    assert datasets.load("mnist").digest == datasets.load("mnist", tmp_path).digest


def test_a_test_only_set_is_cut_in_two(tmp_path, parts):
    only = {key: parts[f"{key[0]}_train"] for key in ("x_test", "y_test")}
    write_idx(tmp_path / "kmnist_test", only, compressed=True)
    data = datasets.load("kmnist_test", tmp_path)
    assert (len(data.train_labels), len(data.validation_labels), len(data.test_labels)) == (50, 10, 60)
    assert len(all_images(data).unique(dim=0)) == 120


def test_a_missing_training_part_is_an_error_where_the_name_does_not_say_so(tmp_path, parts):
    write_idx(tmp_path / "mnist", {"x_test": parts["x_test"], "y_test": parts["y_test"]}, compressed=True)
    with pytest.raises(DatasetError, match=r"lacks x_train .*train-images-idx3-ubyte.*y_train"):
        datasets.load("mnist", tmp_path)


def test_train_limit_takes_a_stratified_prefix_and_leaves_the_rest_alone():
    whole = datasets.load("digits")
    for limit in (10, 100, 999):
        part = datasets.load("digits", train_limit=limit)
        assert len(part.train_labels) == limit
        assert is_prefix_of(part.train_images, whole.train_images)
        assert is_prefix_of(part.train_labels, whole.train_labels)
        assert torch.equal(part.test_images, whole.test_images)
        assert torch.equal(part.validation_images, whole.validation_images)
        assert len(part.train_labels.unique()) == 10


@pytest.mark.parametrize("limit", [-1, 0, 9, 1001])
def test_train_limit_out_of_range(limit):
    with pytest.raises(DatasetError, match=rf"train_limit {limit} .*between 10, .* and 1000"):
        datasets.load("digits", train_limit=limit)


def test_unknown_name_suggests_the_nearest(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'mnist'"):
        datasets.load("mnits", tmp_path)


def test_missing_root_says_what_to_pass(tmp_path, monkeypatch):
    monkeypatch.delenv("WEIGHTSPACE_DATA", raising=False)
    with pytest.raises(DatasetError, match="--data-root DIR or set WEIGHTSPACE_DATA"):
        datasets.load("mnist")
    with pytest.raises(DatasetError, match=r"no data root .*nowhere.*--data-root"):
        datasets.load("mnist", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"there is no data set .*gone\.npz"):
        datasets.load(str(tmp_path / "gone.npz"))


def test_missing_file_is_named(tmp_path, parts):
    folder = write_idx(tmp_path / "mnist", parts, compressed=True)
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DatasetError, match=r"lacks y_test \(t10k-labels-idx1-ubyte\[\.gz\]"):
        datasets.load("mnist", tmp_path)
    with pytest.raises(DatasetError, match=r"'usps' in .* lacks x_test"):
        datasets.load("usps", tmp_path)


def damage_truncated_gzip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def damage_corrupt_gzip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def damage_truncated_idx(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def damage_long_idx(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\0"))


def damage_short_header(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\0\0\x08\x03\0\0"))


def damage_magic(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\x89PNG" + gzip.decompress(path.read_bytes())[4:]))


def damage_first_byte(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\x01" + gzip.decompress(path.read_bytes())[1:]))


def damage_exchange(path: Path) -> None:
    path.write_bytes(path.with_name("train-labels-idx1-ubyte.gz").read_bytes())


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_truncated_gzip, "truncated"),
        (damage_corrupt_gzip, "truncated|header promises"),
        (damage_truncated_idx, "has 2415 bytes and its header promises 2416"),
        (damage_long_idx, "has 2417 bytes and its header promises 2416"),
        (damage_short_header, "header promises"),
        (damage_magic, "not an IDX file: it begins with 89 50 4e 47"),
        (damage_first_byte, "not an IDX file: it begins with 01 00 08 03"),
        (damage_exchange, "has 1 axes and should have 3"),
        (damage_empty, "not an IDX file|truncated"),
    ],
)
def test_damaged_idx_file(tmp_path, parts, damage, says):
    folder = write_idx(tmp_path / "mnist", parts, compressed=True)
    damage(folder / "train-images-idx3-ubyte.gz")
    with pytest.raises(DatasetError, match=rf"train-images-idx3-ubyte\.gz .*({says})"):
        datasets.load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y_train": np.zeros(119, np.uint8)}, "train part .*120 images and 119 labels"),
        ({"x_test": np.zeros((30, 20), np.uint8)}, r"test part .*got shapes \(30, 20\) and \(30,\)"),
        ({"y_test": np.zeros((30, 3), np.uint8)}, r"got shapes \(30, 4, 5\) and \(30, 3\)"),
        ({"y_test": np.full(30, 3)}, "test part .*label 3, outside 0 to 2"),
        ({"y_test": np.full(30, -1)}, "test part .*label -1, outside 0 to 2"),
        ({"y_train": np.arange(120) % 3 + 1}, "0 to k - 1 .*got 3 values from 1 to 3"),
        ({"y_train": np.where(np.arange(120) == 7, 255, np.arange(120) % 3)}, "must be 0 to k - 1|label 255"),
        ({"y_train": np.zeros(120, np.int64)}, "k >= 2"),
        ({"y_train": np.zeros(120)}, "integers as labels, got uint8 and float64"),
        ({"x_train": np.zeros((120, 4, 5), np.uint8)}, "all pixels are equal"),
        ({"x_train": np.full((120, 4, 5), np.nan)}, "NaN or infinite"),
        ({"x_test": np.zeros((30, 6, 5), np.uint8)}, r"\(1, 4, 5\), test images \(1, 6, 5\)"),
        ({"x_train": np.zeros((120, 4, 5, 3), np.uint8)}, "channels last; transpose"),
        ({"x_test": NO_IMAGES, "y_test": np.zeros(0, np.uint8)}, "test part .*is empty"),
        ({"x_train": np.array([None] * 120)}, "allow_pickle"),
    ],
)
def test_npz_with_wrong_content(tmp_path, parts, changes, says):
    np.savez(tmp_path / "own.npz", **parts | changes)
    with pytest.raises(DatasetError, match=says):
        datasets.load("own", tmp_path)


def test_damaged_npz(tmp_path, parts):
    path = tmp_path / "usps.npz"
    np.savez(path, **parts)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"usps\.npz is not an \.npz file, or is truncated"):
        datasets.load("usps", tmp_path)
    np.savez(path, images=parts["x_train"])
    with pytest.raises(DatasetError, match=r"usps\.npz holds images; x_train"):
        datasets.load("usps", tmp_path)
    np.savez(path, **parts)
    np.savez(tmp_path / "usps_copy.npz", **parts)
    with pytest.raises(DatasetError, match=r"usps_copy\.npz holds x_test a second time"):
        datasets.load("usps", tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "counts"),
    [
        ("mnist", (1, 28, 28), 10, (50000, 10000, 10000)),
        ("kmnist_test", (1, 28, 28), 10, (4167, 833, 5000)),
        ("usps", (1, 16, 16), 10, (6076, 1215, 2007)),
        ("emnist_letters", (1, 28, 28), 26, (21667, 4333, 5200)),
        ("cifar10", (3, 32, 32), 10, (16667, 3333, 10000)),
    ],
)
def test_real_data(image_data, name, shape, classes, counts):
    data = datasets.load(name, image_data)
    assert (data.image_shape, data.classes) == (shape, classes)
    assert (len(data.train_labels), len(data.validation_labels), len(data.test_labels)) == counts


def test_real_mnist_is_mnist(image_data):
    """The first ten test labels and the overall mean and deviation, known from the literature (.1307, .3081)."""
    data = datasets.load("mnist", image_data)
    assert data.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    pooled = torch.cat([data.train_images, data.validation_images])
    span = float(pooled.max() - pooled.min())  # 1 in units of value / 255
    assert 1 / span == pytest.approx(0.3081, abs=2e-3)  # the deviation; a sixth of the images is held out of it
    mean = (float(pooled.mean(dtype=torch.float64)) - float(pooled.min())) / span
    assert mean == pytest.approx(0.13066, abs=1e-5)


# ---- Other shapes, and images as they are


@pytest.fixture
def coloured(tmp_path) -> Path:
    """30 training and 12 test images of three classes, 3x8x6 bytes."""
    rng = np.random.default_rng(0)
    arrays = {"y_train": np.arange(30) % 3, "y_test": np.arange(12) % 3}
    arrays |= {
        f"x_{part}": rng.integers(0, 256, (n, 3, 8, 6), dtype=np.uint8) for part, n in (("train", 30), ("test", 12))
    }
    np.savez(tmp_path / "coloured.npz", **arrays)
    return tmp_path / "coloured.npz"


def test_grey_is_the_luminance(coloured):
    raw = np.load(coloured)["x_train"]
    found = datasets.load_pixels(str(coloured), grey=True).images
    expected = (0.299 * raw[:, 0] + 0.587 * raw[:, 1] + 0.114 * raw[:, 2].astype(float)) / 255
    np.testing.assert_allclose(found[:30, 0].numpy(), expected, atol=1e-6)
    assert datasets.load(str(coloured), grey=True).image_shape == (1, 8, 6)


def test_grey_images_stay_as_they_are():
    assert datasets.load("digits", grey=True).digest == datasets.load("digits").digest


def test_cropping_cuts_the_middle_out(coloured):
    raw = np.load(coloured)["x_test"] / 255
    found = datasets.load_pixels(str(coloured), side=4, crop=True).images[30:]
    np.testing.assert_allclose(found.numpy(), raw[:, :, 2:6, 1:5], atol=1e-6)


@given(colour=st.floats(0, 1), side=st.integers(1, 20))
def test_resizing_keeps_a_plain_image(tmp_path_factory, colour, side):
    path = tmp_path_factory.mktemp("plain") / "plain.npz"
    images = np.stack([np.full((3, 8, 6), value, np.float32) for value in (0.0, 1.0, colour)])
    np.savez(path, x_train=images, y_train=np.arange(3), x_test=images, y_test=np.arange(3))
    found = datasets.load_pixels(str(path), side=side).images
    assert found.shape == (6, 3, side, side)
    torch.testing.assert_close(found[2], torch.full((3, side, side), colour), atol=1e-6, rtol=1e-6)


def test_resizing_to_half_averages_neighbours():
    """Bilinear with antialiasing: a triangle over four pixels, so the mean is kept."""
    whole, half = datasets.load_pixels("digits"), datasets.load_pixels("digits", side=4)
    assert half.image_shape == (1, 4, 4)
    means = whole.images.mean((1, 2, 3)), half.images.mean((1, 2, 3))
    assert torch.corrcoef(torch.stack(means))[0, 1] > 0.95


def test_pixels_are_the_files_images_in_order(coloured):
    pixels, raw = datasets.load_pixels(str(coloured)), np.load(coloured)
    np.testing.assert_array_equal(pixels.images[:30].mul(255).round().byte().numpy(), raw["x_train"])
    np.testing.assert_array_equal(pixels.images[30:].mul(255).round().byte().numpy(), raw["x_test"])
    assert pixels.labels.tolist() == [*raw["y_train"].tolist(), *raw["y_test"].tolist()]
    few = datasets.load_pixels(str(coloured), limit=31)
    assert few.images.equal(pixels.images[:31]) and few.digest != pixels.digest


def test_pixels_of_other_numbers_fill_the_range():
    images = datasets.load_pixels("digits").images
    assert images.min() == 0 and images.max() == 1 and len(images.unique()) == 17


def test_impossible_shapes_are_refused(coloured):
    with pytest.raises(DatasetError, match=r"8x6: a square of 7 cannot be cut out"):
        datasets.load(str(coloured), side=7, crop=True)
    for limit in (0, 43):
        with pytest.raises(DatasetError, match=f"limit {limit} .*between 1 and 42"):
            datasets.load_pixels(str(coloured), limit=limit)


@pytest.mark.parametrize("name", ["svhn", "stl10", "eurosat", "cifar100", "tiny_imagenet"])
def test_published_sets_that_are_not_there_say_what_is_missing(tmp_path, name):
    with pytest.raises(DatasetError, match=rf"{name}.*lacks x_test"):
        datasets.load(name, tmp_path)
