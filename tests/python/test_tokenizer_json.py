"""tokenizer.json: Hugging Face `tokenizers` is the oracle; hostile files are refused by field."""

import hashlib
import json
import random

import pytest
from gptoss_native import harmony, o200k, tokenizer_json
from gptoss_native import tokenizer as tokenizer_module
from gptoss_native.errors import CheckpointError, RequestError
from gptoss_native.tokenizer import Tokenizer

from . import harmony_cases as cases

HARMONY_SPECIALS = ("start", "message", "channel", "constrain", "end", "return", "call", "endoftext")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def byte_level_json(merges=(), extra=(), first_special=256):
    """A tokenizer.json with 256 byte symbols, merges, and the harmony specials as added tokens."""
    symbols = list(tokenizer_json.byte_symbols())
    vocab = {s: i for i, s in enumerate([*symbols, *("".join(m) for m in merges), *extra])}
    first = max(first_special, len(vocab))
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": first + n, "content": f"<|{name}|>", "special": True, "normalized": False, "lstrip": False,
             "rstrip": False, "single_word": False}
            for n, name in enumerate(HARMONY_SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL | {"use_regex": True},
        "post_processor": None,
        "decoder": BYTE_LEVEL | {"use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [list(m) for m in merges], "dropout": None,
                  "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False},
    }  # fmt: skip


def write(directory, content):
    path = directory / "tokenizer.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def test_a_vocabulary_of_bytes_alone_loads(tmp_path):
    path = write(tmp_path, byte_level_json())
    small = Tokenizer.for_checkpoint(tmp_path)
    assert small.n_vocab == 256 + len(HARMONY_SPECIALS)
    assert small.specials["<|start|>"] == 256
    text = "naïve 漢字 <|start|>\n"
    ids = small.encode(text)
    assert len(ids) == len(text.encode())
    assert small.decode(ids) == text
    import tokenizers

    hf = tokenizers.Tokenizer.from_file(str(path))
    parts = (text[:9], "<|", text[11:])  # in one piece it would find the special token
    assert ids == [i for part in parts for i in hf.encode(part, add_special_tokens=False).ids]


def test_harmony_speaks_with_any_special_ids(tmp_path, tokenizer):
    """The same conversation through bytes and ids from 256 on, and back; no id of gpt-oss is built in."""
    small = Tokenizer.from_file(write(tmp_path, byte_level_json()))
    conversation = [{"role": "user", "content": "2 + 2? <|end|>"}, {"role": "assistant", "content": "4 💖"}]
    found, real = (
        harmony.render_conversation(conversation, t, current_date="2025-01-01") for t in (small, tokenizer)
    )
    assert small.decode(found) == tokenizer.decode(real)
    assert harmony.stop_token_ids(small) == {small.specials["<|return|>"], small.specials["<|call|>"]}
    parsers = [harmony.HarmonyParser(t, None) for t in (small, tokenizer)]
    for parser, ids in zip(parsers, (found, real), strict=True):
        for token_id in ids:
            parser.push(token_id)
        parser.finish()
    assert parsers[0].messages == parsers[1].messages
    assert parsers[0].messages[-1].content == "4 💖"


def trained(r, pattern):
    """A BPE trained by the `tokenizers` library on random text, as its tokenizer.json."""
    import tokenizers
    from tokenizers import Regex, pre_tokenizers, trainers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    steps = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)]
    hf = tokenizers.Tokenizer(tokenizers.models.BPE())
    hf.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    words = ["".join(r.choice("abcdeéà漢 '.1") for _ in range(r.randint(1, 9))) for _ in range(60)]
    trainer = trainers.BpeTrainer(
        vocab_size=256 + r.randint(0, 300),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[f"<|{name}|>" for name in HARMONY_SPECIALS],
        show_progress=False,
    )
    corpus = [" ".join(r.choice(words) for _ in range(30)) for _ in range(30)] + list(cases.TEXTS)
    hf.train_from_iterator(corpus, trainer)
    content = json.loads(hf.to_str())
    if r.random() < 0.5:  # ids in any order
        model, ids = content["model"], list(range(len(content["model"]["vocab"])))
        r.shuffle(ids)
        model["vocab"] = {token: ids[i] for token, i in model["vocab"].items()}
        for entry in content["added_tokens"]:
            entry["id"] = ids[entry["id"]]
    if r.random() < 0.5:
        content["model"]["merges"] = [
            " ".join(merge) for merge in content["model"]["merges"]
        ]  # the older form
    return content, words


@pytest.mark.parametrize("pattern", [None, o200k.PATTERN, r"\s?\w+|[^\w]"])
def test_trained_tokenizer_files_give_the_ids_of_hugging_face(tmp_path, request, pattern):
    import tokenizers

    seed = request.config.test_seed
    r = random.Random(seed)
    for _ in range(12):
        content, words = trained(r, pattern)
        path = write(tmp_path, content)
        ours, hf = Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))
        assert ours.specials == {entry["content"]: entry["id"] for entry in content["added_tokens"]}
        for _ in range(60):
            text = "".join(r.choice([*words, *cases.TEXTS, " "]) for _ in range(r.randint(0, 8))).replace(
                "<|", "< |"
            )
            expected = hf.encode(text, add_special_tokens=False).ids
            assert ours.encode(text) == expected, f"--seed {seed}: {text!r}"
            assert ours.decode(expected) == text
    assert ours.n_vocab == hf.get_vocab_size()


def test_tokens_no_merge_makes_are_decoded_but_not_encoded(tmp_path):
    small = Tokenizer.from_file(write(tmp_path, byte_level_json(merges=[("a", "b")], extra=["xyz"])))
    ids = small.encode("abxyz")
    assert [small.token_bytes(i) for i in ids] == [b"ab", b"x", b"y", b"z"]
    assert small.decode([257]) == "xyz"


def test_a_token_ranks_by_the_first_merge_that_makes_it():
    """gpt-oss's own file lists every split of a token, one after the other."""
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("x", "y"), ("a", "bc")]
    content = byte_level_json(merges=merges[:4])
    content["model"]["merges"] = [list(merge) for merge in merges]
    vocabulary = tokenizer_json.parse(json.dumps(content).encode(), "tokenizer.json")
    assert vocabulary.tokens[256:] == [b"ab", b"bc", b"abc", b"xy"]


def test_a_folder_without_tokenizer_json_gets_the_shipped_ranks(tmp_path, tokenizer):
    found = Tokenizer.for_checkpoint(tmp_path)
    assert (found.n_vocab, found.specials) == (tokenizer.n_vocab, tokenizer.specials)


def test_the_published_file_is_recognised_by_size_and_hash_only(tmp_path, monkeypatch):
    data = write(tmp_path, byte_level_json()).read_bytes()
    monkeypatch.setattr(tokenizer_module, "PUBLISHED_SIZE", len(data))
    assert Tokenizer.for_checkpoint(tmp_path).n_vocab < 300  # the right size is not enough
    monkeypatch.setattr(tokenizer_module, "PUBLISHED_SHA256", hashlib.sha256(data).hexdigest())
    assert Tokenizer.for_checkpoint(tmp_path).n_vocab == 201_088


def changed(path, value):
    """A valid tokenizer.json with one field set."""
    content = byte_level_json(merges=[("a", "b")])
    *parents, last = path
    node = content
    for key in parents:
        node = node[key]
    node[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("normalizer",), {"type": "NFC"}),
        (("model",), None),
        (("model", "type"), "WordPiece"),
        (("model", "dropout"), 0.1),
        (("model", "byte_fallback"), True),
        (("model", "continuing_subword_prefix"), "##"),
        (("model", "vocab"), {"a": 0}),
        (("model", "vocab"), ["a"]),
        (("model", "vocab", "a"), -1),
        (("model", "vocab", "a"), 1.0),
        (("model", "vocab", "a"), True),
        (("model", "vocab", "a"), 2**40),
        (("model", "vocab", "a"), 5),
        (("model", "vocab", ""), 300),
        (("model", "vocab", "a b"), 300),
        (("model", "vocab", "漢"), 300),
        (("model", "merges"), None),
        (("model", "merges"), [["a", "c"]]),
        (("model", "merges"), [["a"]]),
        (("model", "merges"), ["a  b"]),
        (("model", "merges"), [3]),
        (("model", "merges"), [["", "ab"]]),
        (("pre_tokenizer",), None),
        (("pre_tokenizer",), {"type": "Whitespace"}),
        (("pre_tokenizer", "add_prefix_space"), True),
        (("pre_tokenizer",), {"type": "Sequence", "pretokenizers": []}),
        (("added_tokens",), {"a": 1}),
        (("added_tokens", 0), {"content": "<|start|>"}),
        (("added_tokens", 0), "x"),
        (("added_tokens", 0, "id"), 3),
        (("added_tokens", 0, "id"), 258),
        (("added_tokens", 0, "content"), "\ud800"),
    ],
)
def test_malformed_tokenizer_files_are_refused_by_field(path, value):
    with pytest.raises(CheckpointError) as error:
        tokenizer_json.parse(json.dumps(changed(path, value)).encode(), "tokenizer.json")
    assert str(path[0]) in str(error.value)


def split_json(regex):
    return changed(
        ("pre_tokenizer",),
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
                BYTE_LEVEL | {"use_regex": False},
            ],
        },
    )


@pytest.mark.parametrize(
    "regex", ["(", "(" * 100_000 + ")" * 100_000, "a{1,1000000000}", "", "a*", r"\b", "(?=A)"]
)
def test_a_regex_that_cannot_be_used_is_refused(tmp_path, regex):
    """One that does not compile, and one that matches no characters, for which tiktoken panics."""
    with pytest.raises(CheckpointError, match="pre_tokenizer holds a regex"):
        Tokenizer.from_file(write(tmp_path, split_json(regex)))


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    target = write(tmp_path, byte_level_json())
    (folder / "tokenizer.json").symlink_to(target)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: is a link out of the folder"):
        Tokenizer.for_checkpoint(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("gone")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be opened"):
        Tokenizer.for_checkpoint(folder)
    target.rename(folder / "other.json")
    (folder / "gone").symlink_to("other.json")
    assert Tokenizer.for_checkpoint(folder).n_vocab == 256 + len(HARMONY_SPECIALS)


def test_a_regex_that_leaves_text_out_is_refused_with_that_text(tmp_path):
    digits = Tokenizer.from_file(write(tmp_path, split_json(r"\d+")))
    assert digits.decode(digits.encode("123")) == "123"
    with pytest.raises(RequestError, match=r"3 of the text's 4 bytes"):
        digits.encode("123a")


def test_mutated_tokenizer_files_raise_only_checkpoint_errors(tmp_path, request):
    r = random.Random(request.config.test_seed)
    data = json.dumps(byte_level_json(merges=[("a", "b"), ("ab", "c")])).encode()
    refused = 0
    for _ in range(1500):
        mutant = bytearray(data)
        for _ in range(r.randint(1, 4)):
            at = r.randrange(len(mutant))
            mutant[at : at + r.randint(0, 3)] = bytes(
                r.choice(b'"[]{},:0129-eaNtf\\ \xc4\xff') for _ in range(r.randint(0, 3))
            )
        try:
            vocabulary = tokenizer_json.parse(bytes(mutant), "tokenizer.json")
        except CheckpointError:
            refused += 1
        else:
            small = Tokenizer(vocabulary)
            assert small.decode(small.encode("abc <|start|>")) == "abc <|start|>"
    assert refused > 300


def test_files_that_are_no_json_object_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    for data in (b"", b"[]", b'{"a":1,"a":2}', b"\xff", b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            Tokenizer.for_checkpoint(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.for_checkpoint(tmp_path)
