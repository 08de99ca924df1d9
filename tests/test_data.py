import jax
import numpy as np
import pytest

from shakegpt_jax.data.corpus import load_corpus, split
from shakegpt_jax.data.text import decode_text, read_text, tiny_shakespeare
from shakegpt_jax.data.tokenizer import CharTokenizer
from shakegpt_jax.data.windows import gather_windows, sample_starts, shuffled_starts, split_windows
from shakegpt_jax.errors import UserError


def test_tiny_shakespeare_is_complete():
    text = tiny_shakespeare()
    assert len(text) == 1_115_394
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.")
    tokenizer = CharTokenizer.from_text(text)
    assert tokenizer.vocab_size == 65
    assert tokenizer.vocabulary[:2] == "\n "
    train, val = split(tokenizer.encode(text), 128)
    assert (len(train), len(val)) == (1_003_854, 111_540)
    assert tokenizer.decode(val[:9]) == "?\n\nGREMIO"


@pytest.mark.parametrize("text", ["hello\n", "ab", "\n", "ΟΘεός 🎭 a\u0301\0", "x" * 1000])
def test_tokenizer_round_trip(text):
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert ids.shape == (len(text),)
    assert tokenizer.decode(ids) == text
    assert ids.max() == tokenizer.vocab_size - 1


def test_tokenizer_ids_index_the_sorted_vocabulary():
    tokenizer = CharTokenizer.from_text("banana\n")
    assert tokenizer.vocabulary == "\nabn"
    assert tokenizer.encode("nab\n").tolist() == [3, 1, 2, 0]
    assert tokenizer.encode("nab").dtype == np.uint8
    many = CharTokenizer.from_text("".join(map(chr, range(300))))
    assert many.encode("a").dtype == np.uint16


def test_tokenizer_names_unknown_characters_with_their_first_positions():
    tokenizer = CharTokenizer.from_text("abc")
    with pytest.raises(UserError, match=r"'é' at position 1, '\\n' at position 4") as error:
        tokenizer.encode("aéaé\n")
    assert "position 3" not in str(error.value)
    with pytest.raises(UserError, match=r"characters: U\+0301 at position 1$"):
        tokenizer.encode("a\N{COMBINING ACUTE ACCENT}")
    for bad in ([3], [-1]):
        with pytest.raises(UserError, match=r"outside the vocabulary's \[0, 3\)"):
            tokenizer.decode(bad)


def test_targets_are_inputs_shifted_by_one_at_every_start():
    ids = np.random.default_rng(0).integers(0, 65, 50).astype(np.uint8)
    starts = np.arange(50 - 8)
    inputs, targets = split_windows(gather_windows(ids, starts, 8))
    for start in starts:
        assert inputs[start].tolist() == ids[start : start + 8].tolist()
        assert targets[start].tolist() == ids[start + 1 : start + 9].tolist()


def test_sampled_windows_cover_the_text_uniformly():
    starts, counts = np.unique(sample_starts(jax.random.key(0), 20, 12_000, 8), return_counts=True)
    assert starts.tolist() == list(range(12))
    np.testing.assert_allclose(counts, 1_000, rtol=0.15)


@pytest.mark.parametrize("n", [9, 15, 16, 24, 31, 1_000])
def test_an_epoch_without_replacement_visits_each_window_once(n):
    key, n_windows = jax.random.key(0), max(1, n // 8 - 1)
    starts = np.asarray(shuffled_starts(key, 0, n, 200 * n_windows, 8))
    epochs = starts.reshape(200, n_windows)
    np.testing.assert_array_equal(np.diff(np.sort(epochs)), 8)  # side by side
    visited = starts[:, None] + np.arange(8 + 1)
    np.testing.assert_array_equal(np.unique(visited), np.arange(n))  # by all epochs together
    if n == 1_000:
        assert len(set(map(tuple, np.argsort(epochs)))) == 200  # each has its own order
    of_steps = [shuffled_starts(key, step, n, 5, 8) for step in range(3)]  # may span epochs
    np.testing.assert_array_equal(np.concatenate(of_steps), starts[:15])
    last = shuffled_starts(key, 2**31 - 1, n, 5, 8)
    assert last.min() >= 0 and last.max() < n - 8


def test_the_order_without_replacement_is_uniformly_random():
    """Which window comes first, and which comes next, in 6,000 epochs of 7 windows."""
    starts = shuffled_starts(jax.random.key(0), 0, 64, 42_000, 8).reshape(6_000, 7)
    order = np.asarray(starts) // 8
    first, second = order[:, 0], order[:, 1]
    np.testing.assert_allclose(np.bincount(first, minlength=7), 6_000 / 7, rtol=0.15)
    pairs = np.bincount(first * 7 + second, minlength=49).reshape(7, 7)
    assert pairs.trace() == 0
    np.testing.assert_allclose(pairs[~np.eye(7, dtype=bool)], 6_000 / 42, rtol=0.35)


def test_split_is_contiguous_and_complete():
    ids = np.arange(100)
    train, val = split(ids, 9)
    assert np.concatenate([train, val]).tolist() == ids.tolist()
    assert len(train) == 90


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"abc\xffdef", r"not UTF-8: invalid start byte at byte 3 \(0xff\)"),
        (b"\xef\xbb\xbfab\xe9e", r"not UTF-8: invalid continuation byte at byte 5 \(0xe9\)"),
        (b"\rab\xf0\x9f\x8e", r"not UTF-8: unexpected end of data at byte 3 \(0xf0\)"),
        (b"a" * 1000, "repeats one character"),
        (b"abcdefgh", "smaller split has 1; a window of 8 and its target need 9"),
    ],
)
def test_refuses_invalid_files(tmp_path, monkeypatch, content, message, size):
    monkeypatch.setattr("shakegpt_jax.data.text._PIECE_BYTES", size)
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_corpus(str(path), 8)
    assert "\n" not in str(error.value)


def test_shortest_valid_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("ab" * 44)
    assert len(load_corpus(str(path), 8).val_ids) == 9


def test_refuses_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_text(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="is a folder"):
        read_text(str(tmp_path))


@pytest.mark.parametrize("size", [1, 2, 3, 1_000])
@pytest.mark.parametrize(
    ("raw", "text", "changes"),
    [
        ("a\nb\u2028c\x0c", "a\nb\u2028c\x0c", None),
        ("a\r\nb\r\n", "a\nb\n", r"2 \r\n or \r became \n"),
        (
            "\ufeffa\r\nb\rc\nd\r",
            "a\nb\nc\nd\n",
            r"3 \r\n or \r became \n, the byte-order mark at the start was dropped",
        ),
        (
            "\ufeff\ufeffa\ufeff",
            "\ufeffa\ufeff",
            "the byte-order mark at the start was dropped",
        ),
        ("\r\ufeffa", "\n\ufeffa", r"1 \r\n or \r became \n"),
        ("a\0b\0", "a\0b\0", "it has 2 null characters: is it UTF-16?"),
    ],
)
def test_changes_line_ends_and_byte_order_mark_and_says_so(
    tmp_path, monkeypatch, raw, text, changes, size
):
    monkeypatch.setattr("shakegpt_jax.data.text._PIECE_BYTES", size)
    path, said = tmp_path / "text.txt", []
    path.write_bytes(raw.encode())
    assert read_text(str(path), said.append) == decode_text(raw.encode(), "-") == text
    assert said == ([f"{path}: {changes}"] if changes else [])


def test_a_corpus_notes_what_reading_changed(tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_bytes(text.replace("\n", "\r\n").encode())
    n = text.count("\n")
    assert load_corpus(str(path), 8).note == rf"{path}: {n:,} \r\n or \r became \n"
    assert load_corpus("", 8).note == ""
