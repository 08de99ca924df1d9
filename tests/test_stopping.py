from hypothesis import example, given, settings
from hypothesis import strategies as st

from shakegpt_jax.inference.sampling import StopFilter, truncate_at_stops


def before_stop(text: str, stops: list[str]) -> str:
    """Read one character after another until a stop string is complete; remove the longest."""
    for end in range(1, len(text) + 1):
        if complete := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, complete))]
    return text


@settings(derandomize=True, deadline=None, max_examples=500)
@given(
    st.lists(st.text("ab", max_size=9)), st.lists(st.text("ab", min_size=1, max_size=6), max_size=3)
)
@example(["the strent ", "st"], ["e strent ", " st"])
@example(["a", "ab"], ["aab", "b"])
def test_text_ends_at_the_stop_that_is_complete_first_whatever_the_pieces(pieces, stops):
    filter_ = StopFilter(stops)
    found = "".join(map(filter_.feed, pieces)) + filter_.flush()
    assert found == before_stop("".join(pieces), stops)


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
