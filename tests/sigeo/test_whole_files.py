"""Files that are written whole or not at all."""

from __future__ import annotations

import pytest

from sigeo import InputError
from sigeo.whole_files import write_whole


def test_a_file_is_replaced_whole(tmp_path):
    file = tmp_path / "f.txt"
    for text in ("one", "other"):
        write_whole(file, lambda partial: partial.write_text(text))  # noqa: B023
        assert file.read_text() == text and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_is_stopped_leaves_the_old_file_and_no_half_of_a_new_one(error, raised, tmp_path):
    file = tmp_path / "f.txt"
    file.write_text("old")

    def write(partial):
        partial.write_text("ne")
        raise error

    with pytest.raises(raised) as caught:
        write_whole(file, write)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    if raised is InputError:
        assert str(caught.value) == f"{file}: No space left on device"
