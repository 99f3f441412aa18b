"""Data sets from what users have, and clear words about what is wrong with them."""

from __future__ import annotations

import codecs
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from sigeo import InputError
from sigeo.data import ImageData, Split, load
from tests.conftest import shared_file

RNG = np.random.default_rng(0)


def images(count=6, size=32, channels=3):
    return RNG.integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def cifar_python(folder, *, hundred=False, count=4):
    folder.mkdir(exist_ok=True)
    names = (
        ["train", "test"] if hundred else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    )
    key = b"fine_labels" if hundred else b"labels"
    for name in names:
        data = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {b"data": data, key: [i % 10 for i in range(count)], b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def cifar_binary(folder, *, hundred=False, count=4):
    folder.mkdir(exist_ok=True)
    names = (
        ["train", "test"] if hundred else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    )
    for name in names:
        rows = RNG.integers(0, 256, (count, 3072 + 1 + hundred), dtype=np.uint8)
        rows[:, 0] %= 10
        rows[:, 1 if hundred else 0] = np.arange(count)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return folder


def test_resized_images_are_means_of_areas():
    pixels = torch.from_numpy(images(5, size=8)).permute(0, 3, 1, 2).contiguous()
    labels = torch.arange(5)
    data = ImageData("x", Split(pixels, labels), Split(pixels[:0], labels[:0]), 5)
    small = data.resized(4)
    slow = pixels.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).round()
    assert small.train.images.dtype == torch.uint8 and small.size == 4
    assert (small.train.images == slow).all() and (small.train.labels == labels).all()
    assert small.test.images.shape == (0, 3, 4, 4) and small.fingerprint != data.fingerprint
    assert (data.resized(8).train.images == pixels).all()
    for size in (9, 0):
        with pytest.raises(InputError, match=f"image size: must be from 1 to 8, got {size}"):
            data.resized(size)


def test_digits():
    data = load("digits")
    assert repr(data) == "digits: 1437 train, 360 test, 1x8x8, 10 classes"
    assert repr(data.test) == "Split(360 images, 1x8x8)"
    assert (len(data.train), len(data.test), data.channels, data.size, data.classes) == (
        1437,
        360,
        1,
        8,
        10,
    )
    x, y = data.batch(torch.arange(len(data.train)))
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert abs(x.mean()) < 1e-5 and x.std().item() == pytest.approx(1, abs=1e-3)
    assert data.batch([0, 3], split="test")[0].shape == (2, 1, 8, 8)
    assert data.fingerprint == load("digits").fingerprint
    assert sorted(data.order(5).tolist()) == list(range(1437))
    assert torch.equal(data.order(5), data.order(5)) and not torch.equal(
        data.order(5), data.order(6)
    )


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("make", [cifar_python, cifar_binary])
def test_official_folders(tmp_path, make, hundred):
    folder = make(tmp_path / "cifar", hundred=hundred)
    for place in (folder, tmp_path):  # the folder itself, or the one around it
        data = load(place)
        assert data.name == ("cifar100" if hundred else "cifar10")
        assert data.classes == (100 if hundred else 10)
        assert len(data.train) == (4 if hundred else 20) and len(data.test) == 4
        assert data.train.labels[:4].tolist() == [0, 1, 2, 3]


def test_both_versions_hold_the_same_pixels(tmp_path):
    folder = cifar_binary(tmp_path / "a", hundred=True)
    data = load(folder)
    raw = np.frombuffer((folder / "train.bin").read_bytes(), np.uint8).reshape(4, -1)
    assert np.array_equal(data.train.images.numpy().reshape(4, -1), raw[:, 2:])
    first = data.train.images[0]
    assert first[1, 2, 3] == raw[0, 2 + 1024 + 2 * 32 + 3]  # green, row 2, column 3


class Bomb:
    def __reduce__(self):
        return (print, ("boom",))


def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path, capsys):
    folder = cifar_python(tmp_path / "c", hundred=True)
    (folder / "train").write_bytes(pickle.dumps({b"data": Bomb()}))
    with pytest.raises(InputError, match=r"train: the file asks for builtins\.print"):
        load(folder)
    assert capsys.readouterr().out == ""


class Raises:
    """Pickles as a call of a permitted function that raises something unforeseen."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


DAMAGED = [
    (pickle.dumps(Raises(codecs.encode, "a", "nonsense")), r"\(LookupError unknown encoding"),
    (pickle.dumps(Raises(codecs.encode, "a")), r"batch in the python version \(Attr"),
    (pickle.dumps(Raises(np.dtype, 3)), r"\(TypeError "),
    (pickle.dumps(Raises(np.ndarray, (2**62,))), r"\((Value|Memory)Error "),
    (b"(" * 9 + b"N\x85" * 3 + b"b.", r"expected a CIFAR batch in the python version \("),
    (
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": 1}),
        r"train: fine_labels must be 2 integers, got int64 \[\]",
    ),
    (
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [1]}),
        r"train: fine_labels must be 2 integers, got int64 \[1\]",
    ),
    (
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0.5, 1]}),
        r"train: fine_labels must be 2 integers, got float64 \[2\]",
    ),
    (b"", "expected a CIFAR batch"),
    (b"nonsense", "expected a CIFAR batch"),
    (pickle.dumps([1, 2]), "expected a CIFAR batch"),
    (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}), "expected a CIFAR batch.*labels"),
    (
        pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"fine_labels": [1, 2]}),
        r"data must be uint8 \[N, 3072\], got uint8 \[2, 5\]",
    ),
]


@pytest.mark.parametrize(("content", "message"), DAMAGED, ids=map(str, range(len(DAMAGED))))
def test_damaged_python_batches(tmp_path, content, message):
    folder = cifar_python(tmp_path / "c", hundred=True)
    (folder / "train").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_damaged_binary_batches(tmp_path):
    folder = cifar_binary(tmp_path / "c")
    with (folder / "data_batch_3.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="expected rows of 3073 bytes, got 12293 bytes"):
        load(folder)


def test_labels_out_of_range(tmp_path):
    folder = cifar_binary(tmp_path / "c")
    path = folder / "data_batch_1.bin"
    content = bytearray(path.read_bytes())
    content[0] = 10
    path.write_bytes(content)
    with pytest.raises(InputError, match="cifar10: train labels must be from 0 to 9, got 0 to 10"):
        load(folder)


def test_npz_of_pixels(tmp_path):
    path = tmp_path / "mine.npz"
    pixels, labels = images(), np.arange(6, dtype=np.uint8) % 3
    np.savez(path, train_images=pixels, train_labels=labels, train_index=np.arange(6))
    data = load(path)
    assert data.name == "mine" and data.classes == 3 and len(data.test) == 0
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), pixels)
    grey = images(channels=1)[..., 0]
    np.savez(
        path,
        train_images=grey,
        train_labels=labels,
        test_images=grey,
        test_labels=labels,
        class_names=np.array(list("abcde")),
    )
    data = load(path)
    assert data.channels == 1 and data.classes == 5 and len(data.test) == 6


def test_npz_of_jpeg_streams(tmp_path):
    streams = []
    for array in images(5):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "jpeg", quality=95)
        streams.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, streams)])
    joined = np.frombuffer(b"".join(streams), np.uint8)
    path = tmp_path / "j.npz"
    np.savez(path, train_jpeg=joined, train_offsets=offsets, train_labels=np.arange(5))
    data = load(path)
    expected = np.asarray(Image.open(io.BytesIO(streams[3])))
    assert np.array_equal(data.train.images[3].permute(1, 2, 0).numpy(), expected)
    np.savez(path, train_jpeg=joined[:-5], train_offsets=offsets, train_labels=np.arange(5))
    with pytest.raises(InputError, match="train_offsets must rise from 0 to"):
        load(path)
    broken = joined.copy()
    broken[offsets[2] : offsets[2] + 40] = 0
    np.savez(path, train_jpeg=broken, train_offsets=offsets, train_labels=np.arange(5))
    with pytest.raises(InputError, match="image 2 of train_jpeg"):
        load(path)
    falling = offsets.astype(np.uint64)
    falling[[1, 2]] = falling[[2, 1]]
    for wrong, message in (
        (offsets.astype(float), r"train_offsets must be integers .* got float64 \[6\]"),
        (offsets[None], r"train_offsets must be integers .* got int64 \[1, 6\]"),
        (falling, "train_offsets must rise from 0 to"),
    ):
        np.savez(path, train_jpeg=joined, train_offsets=wrong, train_labels=np.arange(5))
        with pytest.raises(InputError, match=message):
            load(path)


def test_whatever_a_decoder_raises_is_one_line(tmp_path, monkeypatch):
    def broken(_):
        raise SyntaxError("broken\nmarker")

    path = tmp_path / "j.npz"
    stream, offsets = np.zeros(4, np.uint8), np.array([0, 4])
    np.savez(path, train_jpeg=stream, train_offsets=offsets, train_labels=np.zeros(1, int))
    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(InputError, match="image 0 of train_jpeg: SyntaxError broken marker"):
        load(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "expected an array train_images, found nothing"),
        ({"pixels": images()}, "expected an array train_images, found pixels"),
        (
            {"train_images": images().astype(np.float32), "train_labels": np.zeros(6, int)},
            r"train_images must be uint8 \[N, H, W\] .* got float32 \[6, 32, 32, 3\]",
        ),
        (
            {"train_images": images().transpose(0, 3, 1, 2), "train_labels": np.zeros(6, int)},
            r"must have 1 or 3 channels last, got shape \[6, 3, 32, 32\]",
        ),
        (
            {"train_images": images()[:, :20], "train_labels": np.zeros(6, int)},
            r"images must be square, got \[20, 32\]",
        ),
        ({"train_images": images()}, "expected an array train_labels or train_fine, found neither"),
        (
            {"train_images": images(), "train_labels": np.zeros(6)},
            r"train_labels must be integers \[N\], got float64",
        ),
        (
            {"train_images": images(), "train_labels": np.zeros(5, int)},
            r"labels must be one for each of 6 images, got \[5\]",
        ),
        (
            {
                "train_images": images(),
                "train_labels": np.full(6, 7),
                "class_names": np.array(list("ab")),
            },
            "labels must be from 0 to 1, got 7 to 7",
        ),
        (
            {
                "train_images": images(),
                "train_labels": np.zeros(6, int),
                "test_images": images(2, 16),
                "test_labels": np.zeros(2, int),
            },
            r"test images must be \[3, 32, 32\] like the training ones, got \[3, 16, 16\]",
        ),
        (
            {
                "train_images": images(0),
                "train_labels": np.zeros(0, int),
                "class_names": np.array(["a"]),
            },
            "expected training images, got none",
        ),
        (
            {"train_images": images(0), "train_labels": np.zeros(0, int)},
            "bad.npz: expected training images, got none",
        ),
        (
            {"train_images": images(), "train_labels": np.arange(6) << 58},
            "training labels must be below 1048576, got 1441151880758558720",
        ),
        *(
            (
                {"train_images": images(), "train_labels": np.zeros(6, int), name: value},
                rf"{name} must be \[classes\], got \{shape}",
            )
            for name, value, shape in (
                ("class_names", np.array(5), "[]"),
                ("fine_names", np.array([["a"]]), "[1, 1]"),
            )
        ),
        (
            {"train_images": np.array([{}]), "train_labels": np.zeros(1, int)},
            "expected an .npz file of plain arrays",
        ),
    ],
)
def test_bad_npz_files(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message):
        load(path)


def test_truncated_npz(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, train_images=images(), train_labels=np.zeros(6, int))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="expected an .npz file of plain arrays"):
        load(path)


def test_compressed_npz_with_wrong_bytes(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, train_images=np.zeros((600, 8, 8), np.uint8))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.infolist()[0].header_offset + 30 + len("train_images.npy") + 20
    content[start : start + 4] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad.npz: expected an .npz file .* \(error Error -3"):
        load(path)


def test_archives_that_are_no_npz(tmp_path):
    path = tmp_path / "one.npz"
    with path.open("wb") as file:
        np.save(file, images())
    with pytest.raises(InputError, match="one.npz: expected an .npz file, got a single array"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images", "text")
    with pytest.raises(InputError, match="one.npz: .* of plain arrays, found train_images"):
        load(path)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(InputError, match="found no /nowhere"):
        load("/nowhere")
    with pytest.raises(InputError, match="holds no CIFAR-10 or CIFAR-100 files"):
        load(tmp_path)
    other = tmp_path / "a.txt"
    other.write_text("x")
    with pytest.raises(InputError, match=r"expected a folder or an \.npz file"):
        load(other)
    with pytest.raises(InputError, match=r"must be uint8 \[N, channels, H, W\], got float32"):
        split = Split(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))
        ImageData("x", split, split, 2)


@pytest.mark.parametrize(
    ("name", "count", "classes"),
    [("cifar10_raw_subset", 8336, 10), ("cifar100_raw_subset", 1117, 100)],
)
def test_real_images(name, count, classes):
    data = load(shared_file(f"data/{name}.npz"))
    assert len(data.train) == count and data.classes == classes and data.size == 32
