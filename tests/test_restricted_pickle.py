"""Pickles that are not data, in checkpoints of nanoGPT and in its meta.pkl."""

import pickle
from typing import Any

import nanogpt_checkpoints as nano
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shakegpt_jax.errors import UserError
from shakegpt_jax.interop.restricted_pickle import load_pickle


class Malicious:
    """Unpickled as usual, it writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('executed', 'w').close()",)


DOUBLED = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PICKLES = {
    "a function": (
        pickle.dumps(Malicious(), 2),
        "asks for '__builtin__.exec', which",
    ),
    "protocol 0": (pickle.dumps(Malicious(), 0), "asks for '__builtin__.exec'"),
    "protocol 4": (pickle.dumps(Malicious(), 4), "uses STACK_GLOBAL"),
    "protocol 5": (pickle.dumps({"a": [Malicious()]}, 5), "uses STACK_GLOBAL"),
    "a dotted name": (b"ctorch._utils\nos.system\n(X\x02\0\0\0lstR.", "'torch._utils.os.system'"),
    "a near name": (b"ctorch\nload\n.", "asks for 'torch.load'"),
    "an instance": (b"(cos\nsystem\nX\x02\0\0\0lso.", "asks for 'os.system'"),
    "an instance of data": (b"(X\x02\0\0\0lso.", "uses OBJ"),
    "an entry of text": (b"Np0\n.", "uses PUT"),
    "a shortcut": (b"(X\x02\0\0\0lsios\nsystem\n.", "uses INST"),
    "an extension": (b"\x82\x01.", "uses EXT1"),
    "attributes of a function": (REBUILD + b"N}X\x01\0\0\0aNs\x86b(tR.", "sets attributes"),
    "attributes of a type": (b"ccollections\nOrderedDict\nN}X\x01\0\0\0aNs\x86b.", "sets attr"),
    "a key that overflows the stack": (b"})" + 200_000 * b"\x85" + b"Ns.", "key of type tuple"),
    "a key that takes years to hash": (b"}" + DOUBLED + b"Ns.", "a key of type tuple"),
    "such keys, as torch.save sets them": (b"}(" + DOUBLED + b"Nu.", "a key of type tuple"),
    "such a key in a call": (
        b"ccollections\nOrderedDict\n]" + DOUBLED + b"N\x86a\x85R.",
        "corrupt",
    ),
    "keys with the same hash": (b"}\x8a\x08" + b"\xff" * 7 + b"\x1fNs.", "key of type int"),
    "items of a list": (b"]K\0Ns.", "changes what is not a dict"),
    "a call with more arguments": (REBUILD + b"(NNNNNNNNtR.", "corrupt"),
    "a call of data": (b"X\x01\0\0\0a)R.", "corrupt"),
    "a tensor of nothing": (REBUILD + b")R.", "corrupt"),
    "a text of 4 GB": (b"X\xff\xff\xff\xffabc.", "corrupt"),
    "a number of 2 GB": (b"\x8b\xff\xff\xff\x7fabc.", "uses LONG4"),
    "4 billion slots": (b"Nr\xff\xff\xff\xff.", "is not a checkpoint"),
    "bytes of 2**62": (b"\x96\0\0\0\0\0\0\0\x40.", "uses BYTEARRAY8"),
    "another storage": (b"X\x01\0\0\0aQ.", "corrupt"),
    "the end": (b"}", "corrupt"),
    "nothing": (b"", "corrupt"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_are_not_data_are_refused(nanogpt_files, name, refused):
    pickled, reason = PICKLES[name]
    nano.write_archive(nanogpt_files / "bad.pt", pickled)
    line = refused("bad.pt", "--meta", "meta.pkl")
    assert line.startswith("error: bad.pt is") and reason in line
    (nanogpt_files / "bad.pkl").write_bytes(pickled)
    assert refused("ckpt.pt", "--meta", "bad.pkl").startswith("error: bad.pkl is")


def test_the_malicious_pickle_would_have_executed(nanogpt_files):
    pickle.loads(PICKLES["a function"][0])
    assert (nanogpt_files / "executed").exists()


def test_no_global_is_allowed_in_meta(nanogpt_files, refused):
    (nanogpt_files / "meta.pkl").write_bytes(b"ccollections\nOrderedDict\n)R.")
    assert "asks for 'collections.OrderedDict'" in refused("ckpt.pt", "--meta", "meta.pkl")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*b"(.0NKJX}u]aet)RbQqrhjc\x80\x85\x86\x87\x88\x8a\x94"]), max_size=40)
)
def test_random_opcodes_load_or_are_refused(opcodes):
    allowed = {"torch.FloatStorage": "float32"}
    try:
        load_pickle(b"\x80\x02" + bytes(opcodes) + b".", "x", allowed, lambda pid: 1 / 0)
    except UserError as error:
        assert str(error).startswith("x is ") and "\n" not in str(error)
