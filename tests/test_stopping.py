import random

import pytest

from shakegpt_jax.inference.sampling import StopFilter, truncate_at_stops


def cut(text: str, stops: list[str], sizes: list[int]) -> str:
    filter_, out = StopFilter(stops), ""
    while text:
        size = sizes.pop() if sizes else 1
        out += filter_.feed(text[:size])
        text = text[size:]
    return out + filter_.flush()


@pytest.mark.parametrize("seed", range(20))
def test_text_ends_at_the_first_stop_however_it_is_cut(seed):
    draw = random.Random(seed)
    text = "".join(draw.choices("ab\n", k=60))
    stops = ["".join(draw.choices("ab\n", k=draw.randint(2, 6))) for _ in range(2)]
    expected = min((text[: text.find(s)] for s in stops if s in text), key=len, default=text)
    assert cut(text, stops, [draw.randint(1, 9) for _ in range(10)]) == expected


def test_holds_back_only_what_may_begin_a_stop():
    filter_ = StopFilter(["\n\nA"])
    assert filter_.feed("one\n") == "one"
    assert filter_.feed("two\n\n") == "\ntwo"
    assert filter_.feed("B") == "\n\nB"
    assert filter_.feed("\n\nArest") == ""
    assert filter_.stopped
    assert filter_.feed("more") == filter_.flush() == ""


def test_batch_ends_when_every_text_has_ended():
    def chunks():
        yield ["ax", "bb"]
        yield ["c", "xb"]
        raise AssertionError("generated more than needed")

    assert list(truncate_at_stops(chunks(), ["x"], 2)) == [["a", "bb"], ["", ""]]
