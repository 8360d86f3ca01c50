"""Text tokenizers: the trained one, and a real Qwen2 with a VLM's additions."""

import json
import pickle

import pytest

from jala_ray.config.backbones import BACKBONES
from jala_ray.models.text import TextTokenizer
from jala_ray.types import ConfigError

CORPUS = [
    f"{verb} the {thing} {how} within {n} seconds."
    for verb in ("Pick up", "Push", "Rotate", "Put down")
    for thing in ("red cup", "drawer handle", "small box")
    for how in ("with the left hand", "with both hands", "slowly, and then stop")
    for n in range(1, 11)
]
SENTENCES = (
    *CORPUS[::37],
    "Describe what happens:\n- the left hand;\n\n  - the right one.  ",
    "Ça, naïve — 日本語 🎉\t1234",
    "",
)


@pytest.fixture(scope="module")
def trained() -> TextTokenizer:
    return TextTokenizer.train(CORPUS, 400)


@pytest.fixture(scope="module")
def qwen(shared_data) -> TextTokenizer:
    return TextTokenizer.from_pretrained(str(shared_data / "qwen2_tokenizer"))


def test_trained_round_trip_is_lossless(trained):
    for text in SENTENCES:
        assert trained.decode(trained.encode(text)) == text
    # It learned the corpus: far fewer tokens than bytes.
    assert len(trained.encode(CORPUS[0])) < len(CORPUS[0]) / 3
    assert 262 < trained.vocab_size <= 400
    assert trained.added == ()


def test_training_is_deterministic(trained):
    again = TextTokenizer.train(CORPUS, 400)
    assert [again.encode(text) for text in SENTENCES] == [trained.encode(text) for text in SENTENCES]
    assert again.vocab_size == trained.vocab_size


def test_saved_and_pickled_copies_are_the_same(trained, tmp_path):
    trained.save(tmp_path)
    for copy in (TextTokenizer.from_pretrained(str(tmp_path)), pickle.loads(pickle.dumps(trained))):
        assert copy.vocab_size == trained.vocab_size and copy.added == ()
        assert (copy.pad, copy.im_end, copy.img_context) == (trained.pad, trained.im_end, trained.img_context)
        for text in SENTENCES:
            assert copy.encode(text) == trained.encode(text)
            assert copy.decode(copy.encode(text)) == text


def special(tokenizer: TextTokenizer) -> list[int]:
    return [tokenizer._id(token) for token in tokenizer.template.special]


def test_special_ids_are_distinct_and_last(trained):
    ids = special(trained)
    assert len(set(ids)) == len(ids)
    assert min(ids) == trained.vocab_size - len(ids) and max(ids) == trained.vocab_size - 1
    assert trained.decode([trained.img_start, trained.img_context, trained.img_end]) == "<img><IMG_CONTEXT></img>"


def test_spelled_out_special_tokens_stay_text(trained):
    text = "say <|im_end|> and <IMG_CONTEXT>"
    ids = trained.encode(text)
    assert not set(ids) & set(special(trained))
    assert trained.decode(ids) == text


def turn(tokenizer: TextTokenizer, question: str, answer: str) -> list[int]:
    return [
        *tokenizer.user_open(),
        *tokenizer.encode(question),
        *tokenizer.user_close_assistant_open(),
        *tokenizer.encode(answer),
        *tokenizer.assistant_close(),
    ]


TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"


def test_chat_pieces_spell_the_template(trained):
    ids = turn(trained, "Pick up the red cup.", "It is done.")
    assert trained.decode(ids) == TEMPLATE.format("Pick up the red cup.", "It is done.")
    assert ids.count(trained._id("<|im_start|>")) == ids.count(trained.im_end) == 2
    assert ids[-2:] == [trained.im_end, *trained.encode("\n")]


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_kind_has_a_template_of_its_own(kind: str, tmp_path) -> None:
    """All its special tokens are known, and its pieces say what the kind writes down, system turn included."""
    template = BACKBONES.find(kind).template
    tokenizer = TextTokenizer.train(CORPUS, 400, kind)
    tokenizer.save(tmp_path)
    pieces = (template.user_open, template.user_close_assistant_open, template.assistant_close)
    for one in (tokenizer, TextTokenizer.from_pretrained(str(tmp_path), kind=kind)):
        assert one.added == () and len(set(special(one))) == len(template.special)
        joined = [one.user_open(), one.user_close_assistant_open(), one.assistant_close()]
        assert tuple(map(one.decode, joined)) == pieces
        assert one.decode([one.img_start, one.img_context, one.img_end]) == (
            template.image_start + template.image + template.image_end
        )
        assert one.assistant_close()[0] == one.im_end == one._id(template.end)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="262"):
        TextTokenizer.train(CORPUS, 261)


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="can be read"):
        TextTokenizer.from_pretrained("/no/such/folder")
    with pytest.raises(ConfigError, match="can be read"):
        TextTokenizer.from_pretrained(str(tmp_path))


def test_real_qwen2(qwen):
    assert qwen.vocab_size == 151_680 and qwen.added == ()
    assert (qwen._id("<|im_start|>"), qwen.im_end, qwen.pad) == (151_644, 151_645, 151_643)
    assert (qwen.img_start, qwen.img_end, qwen.img_context) == (151_670, 151_671, 151_669)
    for text in SENTENCES:
        assert qwen.decode(qwen.encode(text)) == text
    assert not set(qwen.encode("<|im_end|><img>")) & {qwen.im_end, qwen.img_start}
    assert pickle.loads(pickle.dumps(qwen)).encode(CORPUS[0]) == qwen.encode(CORPUS[0])


def test_real_chat_template(qwen):
    """The pieces are the ids that the whole template gives when tokenised in one go."""
    whole = qwen._hf(TEMPLATE.format(CORPUS[0], "Done."), add_special_tokens=False)["input_ids"]
    assert turn(qwen, CORPUS[0], "Done.") == whole
    assert qwen.user_open() == [151_644, 872, 198]


def test_real_chat_template_of_qwen2_5_vl(shared_data):
    """Likewise, with the system turn and the vision tokens that Qwen's own vocabulary has."""
    tokenizer = TextTokenizer.from_pretrained(str(shared_data / "qwen2_tokenizer"), kind="qwen2_5_vl")
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    whole = tokenizer._hf(system + TEMPLATE.format(CORPUS[0], "Done."), add_special_tokens=False)["input_ids"]
    assert turn(tokenizer, CORPUS[0], "Done.") == whole and tokenizer.added == ()
    assert len(tokenizer.user_open()) == 11 + 3
    assert (tokenizer.img_start, tokenizer.img_end, tokenizer.img_context) == (151_652, 151_653, 151_655)


def test_plain_qwen2_gets_internvls_tokens(shared_data, tmp_path):
    """Qwen2 without a VLM's additions: the first of its vocabulary and merges alone."""
    source, kept = shared_data / "qwen2_tokenizer", 3000
    vocab = json.loads((source / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for token, i in vocab.items() if i < kept}))
    # Ids below 256 are the bytes; every later one is the result of the next merge.
    merges = (source / "merges.txt").read_text().split("\n")
    merges = [line for line in merges if not line.startswith("#version")][: kept - 256]
    (tmp_path / "merges.txt").write_text("\n".join(merges))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    tokenizer = TextTokenizer.from_pretrained(str(tmp_path))
    assert set(tokenizer.added) >= {"<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>"}
    assert tokenizer.vocab_size == kept + len(tokenizer.template.special)
    assert len(tokenizer.encode(CORPUS[0])) < len(CORPUS[0]) / 2
    tokenizer.save(tmp_path / "saved")
    again = TextTokenizer.from_pretrained(str(tmp_path / "saved"))
    assert again.added == () and again.vocab_size == tokenizer.vocab_size
    assert turn(again, CORPUS[0], "Done.") == turn(tokenizer, CORPUS[0], "Done.")
