"""Tokenizer on the shipped ranks: oracles are tiktoken and openai-harmony."""

import hashlib
import subprocess
import sys

import pytest
from gptoss_native import o200k
from gptoss_native.errors import CheckpointError, RequestError
from hypothesis import given, settings
from hypothesis import strategies as st

from . import harmony_cases as cases

TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(cases.TEXTS), max_size=8).map("".join),
    st.text(alphabet="aA 'sS1\n\r\t.,/|<>ſİ\u200d\ufeff\u00a0é漢💖", max_size=60),
)


def test_shipped_ranks_are_openais(tiktoken_file, make_ranks):
    assert hashlib.sha256(tiktoken_file.read_bytes()).hexdigest() == make_ranks.SHA256


def test_specials_are_those_of_openai_harmony(tokenizer, oracle):
    assert {s: oracle.decode([i]) for s, i in tokenizer.specials.items()} == {
        s: s for s in tokenizer.specials
    }
    assert all(map(oracle.is_special_token, tokenizer.special_ids))
    # that library's list goes one past the 201,088 rows the model has
    assert oracle.special_tokens_set - set(tokenizer.specials) == {"<|reserved_201088|>"}
    assert tokenizer.n_vocab == 201_088
    assert tokenizer.special_ids == set(range(199_998, 201_088))


@pytest.fixture(scope="session")
def tiktoken_o200k(tiktoken_file):
    """o200k_harmony as tiktoken itself defines it, with the ranks read from the unpacked file."""
    import tiktoken
    import tiktoken.load
    import tiktoken_ext.openai_public as public

    load = public.load_tiktoken_bpe
    public.load_tiktoken_bpe = lambda *_, **__: tiktoken.load.load_tiktoken_bpe(str(tiktoken_file))
    try:
        return tiktoken.Encoding(**public.o200k_harmony())
    finally:
        public.load_tiktoken_bpe = load


@settings(max_examples=1000, deadline=None)
@given(text=TEXTS)
def test_ids_are_those_of_tiktoken_and_openai_harmony(tokenizer, oracle, tiktoken_o200k, text):
    ids = tokenizer.encode(text)
    assert ids == tiktoken_o200k.encode_ordinary(text)
    assert ids == oracle.encode(text, disallowed_special=())
    assert tokenizer.decode(ids) == text
    assert tokenizer.special_ids.isdisjoint(ids)


def test_every_special_spelled_in_text_is_ordinary(tokenizer):
    text = "".join(tokenizer.specials)
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.decode(ids) == text


@settings(max_examples=1000, deadline=None)
@given(ids=st.lists(st.one_of(st.integers(0, 255), st.integers(0, 201_087)), max_size=20))
def test_streamed_pieces_join_to_the_decoded_text(tokenizer, ids):
    stream = tokenizer.stream()
    pieces = [stream.push(token_id) for token_id in ids]
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)
    assert b"".join(map(tokenizer.token_bytes, ids)) == tokenizer.decode_bytes(ids)


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="aé漢💖👩\u200d", max_size=30))
def test_a_stream_shows_whole_characters_as_soon_as_they_are_complete(tokenizer, text):
    stream, data, shown = tokenizer.stream(), b"", ""
    by_byte = {tokenizer.token_bytes(i): i for i in range(256)}
    for byte in text.encode():
        data += bytes((byte,))
        shown += stream.push(by_byte[bytes((byte,))])
        assert shown == data.decode("utf-8", "ignore")
    assert stream.flush() == ""


@pytest.mark.parametrize("token_id", [-1, 201_088, 2**70])
def test_ids_outside_the_vocabulary_are_named(tokenizer, token_id):
    with pytest.raises(RequestError, match=f"{token_id} .*201088"):
        tokenizer.decode([token_id])


def test_only_text_is_encoded(tokenizer):
    with pytest.raises(RequestError, match="bytes"):
        tokenizer.encode(b"x")
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_importing_and_decoding_do_not_load_tiktoken():
    code = (
        "import sys; from gptoss_native.tokenizer import Tokenizer; import gptoss_native.harmony;"
        "assert Tokenizer.o200k_harmony().decode([24912]) == 'hello';"
        "assert 'tiktoken' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_make_ranks_reads_every_form_and_checks_the_hash(tiktoken_file, make_ranks, tmp_path, monkeypatch):
    tokens = o200k.load_tokens()
    assert make_ranks.read_tiktoken(tiktoken_file.read_bytes()) == tokens
    assert o200k.unpack(o200k.pack(tokens), o200k.N_RANKS) == tokens
    vocab = len(tokens).to_bytes(4, "little") + b"".join(
        len(token).to_bytes(2, "little") + token + rank.to_bytes(4, "little")
        for rank, token in enumerate(tokens)
    )
    assert make_ranks.read_vocab(vocab) == tokens
    monkeypatch.setattr(o200k, "DATA_FILE", tmp_path / "data" / "out.zlib")
    wrong = tmp_path / "wrong.tiktoken"
    wrong.write_bytes(make_ranks.tiktoken_text(tokens[:-1]))
    monkeypatch.setattr(sys, "argv", ["make_ranks.py", str(wrong)])
    with pytest.raises(SystemExit, match="sha256"):
        make_ranks.main()
    monkeypatch.setattr(sys, "argv", ["make_ranks.py", str(tiktoken_file)])
    make_ranks.main()
    assert o200k.load_tokens() == tokens


def test_damaged_ranks_are_refused(tmp_path, monkeypatch):
    data = o200k.DATA_FILE.read_bytes()
    monkeypatch.setattr(o200k, "DATA_FILE", tmp_path / "ranks.zlib")
    with pytest.raises(CheckpointError, match=r"ranks\.zlib"):
        o200k.load_tokens()
    for damaged in (data[:-9], b"x" + data, o200k.pack([b"a", b"bc"])):
        o200k.DATA_FILE.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"ranks\.zlib"):
            o200k.load_tokens()
