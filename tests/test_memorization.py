import random

from shakegpt_jax.inference.evaluation import longest_copy


def test_the_longest_copy_is_found():
    assert longest_copy("xxto be or nyy", "to be or not to be") == "to be or n"
    assert longest_copy("abc", "xyz") == ""
    assert longest_copy("", "xyz") == ""
    assert longest_copy("xyz", "xyz") == "xyz"
    assert longest_copy("ab--cd", "cd ab") == "ab"  # the first of two


def test_the_longest_copy_is_as_long_as_brute_force_finds():
    draw = random.Random(0)
    for _ in range(50):
        text, source = ("".join(draw.choices("ab", k=20)) for _ in range(2))
        pieces = (text[i:j] for i in range(20) for j in range(i + 1, 21))
        assert len(longest_copy(text, source)) == max(len(p) for p in pieces if p in source)
