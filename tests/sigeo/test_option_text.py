"""How things with options of their own are written."""

from __future__ import annotations

import pytest

from sigeo import InputError, option_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a, b ,,c", ["a", "b", "c"]),
        ("a:x=1,y=2,b", ["a:x=1,y=2", "b"]),
        ("a:x=[1, 2],y={},b:z=3, w=4", ["a:x=[1, 2],y={}", "b:z=3,w=4"]),
        ("x=1,a", ["x=1", "a"]),
        ('a:x="b:y=1,z=2",w=3,c', ['a:x="b:y=1,z=2",w=3', "c"]),
        (r'a:x="]\",",b', [r'a:x="]\","', "b"]),
        (r'a:x="\\",b', [r'a:x="\\"', "b"]),
        ("a,x=1", ["a,x=1"]),
    ],
)
def test_several_are_told_apart(text, expected):
    assert option_text.listed(text) == expected


def test_values_are_json_or_text():
    given = ["a=1", "b=[1, 2.5]", "c=null", 'd="x"', "e=x", "f=", "g=a=b"]
    expected = {"a": 1, "b": [1, 2.5], "c": None, "d": "x", "e": "x", "f": "", "g": "a=b"}
    assert option_text.values("thing", given, "abcdefg") == expected
    for wrong, message in (
        (["a"], "thing: expected option=value, got 'a'; options are a=, b="),
        (["=1"], "thing: expected option=value, got '=1'"),
        (["a=1", "a=1"], "thing: a is given more than once"),
    ):
        with pytest.raises(InputError, match=message):
            option_text.values("thing", wrong, "ab")


def test_options_are_read_as_they_are_written():
    options = {"a": 1.5, "b": [[0, 1], [2]], "c": None, "d": "text", "e": True}
    texts = [option_text.written(*option) for option in options.items()]
    assert texts == ["a=1.5", "b=[[0, 1], [2]]", "c=null", "d=text", "e=true"]
    _, given = option_text.parts(f"thing:{','.join(texts)}")
    assert option_text.values("thing", given, options) == options
