"""A file of options says what it says, or is refused with its name."""

import pytest

from recipes.distill.parser import read_yaml


def test_numbers_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1:30\nb: 010\nc: 12\nd: -3\ne: 1.5\nf: true\ng: 0\n")
    assert read_yaml(path) == {"a": "1:30", "b": "010", "c": 12, "d": -3, "e": 1.5, "f": True, "g": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\na: 2\n", "is not YAML: the key 'a' is there twice .*line 2"),
        (b"a: \xff\n", "byte 3 is not UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"a: b: c\n", "is not YAML: mapping values are not allowed here .*line 1"),
        (b"a: !!python/object/apply:os.system ['true']\n", "is not YAML: could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_is_named_with_its_file(tmp_path, content, message):
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.yaml.*{message}"):
        read_yaml(tmp_path / "a.yaml")
