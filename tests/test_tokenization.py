import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from receiptbert import WordpieceTokenizer
from receiptbert.errors import UserError
from receiptbert.vocabulary import SPECIAL_TOKENS
from tests.conftest import ROOT
from tests.small_models import change_json


def train(texts: list[str], folder: Path, **kwargs: int | bool) -> WordpieceTokenizer:
    return WordpieceTokenizer.from_corpus(texts, folder / "corpus.txt", folder, "t", **kwargs)  # type: ignore[arg-type]


def test_special_tokens_come_first(tokenizer: WordpieceTokenizer) -> None:
    assert tokenizer.tokens[:5] == SPECIAL_TOKENS
    assert tokenizer.special_token_ids == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id) == (0, 1, 2)
    assert (tokenizer.sep_token_id, tokenizer.mask_token_id) == (3, 4)


def test_vocabulary_is_as_large_as_asked_without_repeats(tokenizer: WordpieceTokenizer) -> None:
    assert tokenizer.vocab_size == len(set(tokenizer.tokens)) == 60


def test_a_call_adds_no_special_tokens_and_splits_words(
    texts: list[str], tokenizer: WordpieceTokenizer
) -> None:
    for text in texts[:20]:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text))
        assert "".join(tokens).replace("##", "") == text.replace(" ", "")
        assert not set(tokens) & set(SPECIAL_TOKENS)


def test_texts_are_lowered_cleaned_and_stripped_of_accents(tmp_path: Path) -> None:
    tokenizer = train(["ёлка иогурт"] * 3, tmp_path)
    assert tokenizer("ЁЛКА\u0000\tЙОГУРТ") == tokenizer("елка иогурт") != []


@pytest.mark.parametrize(
    ("option", "same", "other"),
    [
        ("lowercase", "елка", "ЕЛКА"),
        ("strip_accents", "елка", "ёлка"),
        ("clean_text", "ел ка", "ел\u0000 ка"),
    ],
)
def test_each_normalization_can_be_switched_off(tmp_path: Path, option: str, same: str, other: str) -> None:
    corpus = ["ел ка елка ёлка ЕЛКА Ё"] * 3
    switched_on = train(corpus, tmp_path)
    assert switched_on(same) == switched_on(other)
    kept = train(corpus, tmp_path, **{option: False})
    assert kept(same) != kept(other)


def test_the_temporary_corpus_is_removed(tmp_path: Path) -> None:
    train(["молоко"] * 3, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["t-vocab.txt"]


def test_a_line_break_in_a_text_is_a_space(tmp_path: Path) -> None:
    assert train(["сыр\nкефир"] * 3, tmp_path).tokens == train(["сыр кефир"] * 3, tmp_path).tokens


def test_texts_that_spell_special_tokens_are_learned_like_others(tmp_path: Path) -> None:
    tokenizer = train(["[MASK] [UNK] сыр"] * 3, tmp_path)
    words = [token for token in tokenizer.tokens if not token.startswith("##")]
    assert {"mask", "unk", "сыр", "[", "]"} <= set(words)
    assert not [token for token in tokenizer.tokens[5:] if len(token.removeprefix("##")) > 1 and "]" in token]


def test_same_vocabulary_in_every_process(texts: list[str], tmp_path: Path) -> None:
    """The trainer's hash maps are seeded anew in each process."""
    script = (
        "import sys; from receiptbert import WordpieceTokenizer as W; "
        "W.from_corpus(sys.stdin.read().split('\\n'), sys.argv[1] + '/c', sys.argv[1], 't', vocab_size=60)"
    )
    vocabularies = set()
    for threads in ("1", "2", "4"):
        folder = tmp_path / threads
        subprocess.run(
            [sys.executable, "-c", script, str(folder)],
            input="\n".join(texts),
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "RAYON_NUM_THREADS": threads},
        )
        vocabularies.add((folder / "t-vocab.txt").read_bytes())
    assert len(vocabularies) == 1


def test_a_rare_character_beyond_the_alphabet_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiptbert.vocabulary.MAX_ALPHABET", 3)
    tokenizer = train(["aaa bbb cc d"] * 3, tmp_path)
    assert tokenizer("d") == [tokenizer.unk_token_id]
    assert tokenizer("c") != [tokenizer.unk_token_id]
    tokenizer = train(["z"] * 9 + ["aa bb cc"], tmp_path)  # a word's letters count as often as the word
    assert tokenizer("z") != [tokenizer.unk_token_id]


def test_the_vocabulary_does_not_depend_on_how_texts_are_put_into_lines(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = ["", "   ", "а\rб", "а\x85б", "а\u2028б", "а\x1cб", "[SEP] а", "\u0301а", "а\u00a0б"]
    found = []
    for count in (1, 3, 100):
        monkeypatch.setattr("receiptbert.vocabulary.TEXTS_PER_LINE", count)
        found.append(train([*strange, *texts, *strange], tmp_path, vocab_size=80).tokens)
    assert found[0] == found[1] == found[2]


def test_batches_give_the_ids_of_single_calls(
    texts: list[str], tokenizer: WordpieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiptbert.tokenization.TEXTS_AT_ONCE", 7)
    chunks = list(tokenizer.encode_batch(texts))
    assert np.concatenate([ids for ids, _ in chunks]).tolist() == [
        i for text in texts for i in tokenizer(text)
    ]
    lengths = np.concatenate([lengths for _, lengths in chunks])
    assert lengths.tolist() == [len(tokenizer(text)) for text in texts]


def test_a_line_that_a_vocabulary_has_twice_shifts_no_id(tmp_path: Path) -> None:
    tokens = [*SPECIAL_TOKENS, "молоко", "сыр", "молоко", "хлеб"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    ours = WordpieceTokenizer.from_pretrained(tmp_path)
    assert ours.tokens[5:] == ["[gap5]", "сыр", "молоко", "хлеб"]
    assert ours.vocab_size == 9
    ours.save_pretrained(tmp_path / "saved")
    lines = (tmp_path / "saved" / "vocab.txt").read_text().splitlines()
    assert [lines[i] for i in ours("молоко хлеб")] == ["молоко", "хлеб"]


def test_saved_tokenizer_loads_here_and_in_transformers(
    texts: list[str], tokenizer: WordpieceTokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path, max_seqlen=6)
    ours = WordpieceTokenizer.from_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.tokens == tokenizer.tokens
    for text in texts[:20]:
        expected = [tokenizer.cls_token_id, *tokenizer(text)[:4], tokenizer.sep_token_id]
        assert ours(text) == tokenizer(text)
        assert theirs(text.upper(), truncation=True)["input_ids"] == expected


def test_every_normalization_survives_saving(tmp_path: Path) -> None:
    text = "ел\u0000 ка ёлка ЕЛКА"
    for option in ("lowercase", "strip_accents", "clean_text"):
        tokenizer = train(["ел ка елка ёлка ЕЛКА Ё"] * 3, tmp_path, **{option: False})
        tokenizer.save_pretrained(tmp_path / option)
        assert WordpieceTokenizer.from_pretrained(tmp_path / option)(text) == tokenizer(text), option


def test_padding_and_cutting_set_by_others_are_switched_off(
    tokenizer: WordpieceTokenizer, texts: list[str], tmp_path: Path
) -> None:
    """As checkpoints of sentence-transformers have them."""
    tokenizer.save_pretrained(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_padding(length=8)
    backend.enable_truncation(2)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = WordpieceTokenizer.from_pretrained(tmp_path)
    ((ids, _),) = loaded.encode_batch(texts)
    assert ids.tolist() == [i for text in texts for i in tokenizer(text)]


def test_a_special_token_that_is_null_is_the_usual_one(tokenizer: WordpieceTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    change_json(tmp_path / "tokenizer_config.json", mask_token=None)
    assert WordpieceTokenizer.from_pretrained(tmp_path).mask_token_id == tokenizer.mask_token_id


def test_a_tokenizer_without_settings_is_saved_with_those_it_has(tmp_path: Path) -> None:
    """A cased one stays one: transformers goes by tokenizer_config.json."""
    train(["ЧАЙ чай"] * 3, tmp_path, lowercase=False).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = WordpieceTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path / "again")
    ids = tokenizer("ЧАЙ чай")
    assert len(set(ids)) == len(ids)
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("ЧАЙ чай")["input_ids"][1:-1] == ids


def test_older_checkpoints_have_a_vocabulary_and_settings(tmp_path: Path) -> None:
    """No tokenizer.json; special tokens as mappings, and under names of their own."""
    tokens = ["<pad>", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ЧАЙ", "чай"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    settings = {"do_lower_case": False, "pad_token": {"__type": "AddedToken", "content": "<pad>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = WordpieceTokenizer.from_pretrained(tmp_path)
    assert tokenizer.special_token_ids == [0, 1, 2, 3, 4]
    assert tokenizer.pad_token_id == 0
    assert tokenizer("ЧАЙ чай") == [5, 6]
    tokenizer.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")("ЧАЙ чай")["input_ids"] == [2, 5, 6, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "tokenizer.json is damaged"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is damaged"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is damaged"),
        ("tokenizer_config.json", "null", "tokenizer_config.json is damaged"),
        ("tokenizer_config.json", '{"cls_token": 5}', "cls_token cannot be 5; restore"),
        ("tokenizer_config.json", '{"cls_token": {}}', "cls_token cannot be {}; restore"),
        ("tokenizer_config.json", '{"do_lower_case": "yes"}', "do_lower_case cannot be 'yes'; restore"),
        ("tokenizer_config.json", '{"cls_token": "<s>"}', "the tokenizer has no cls token"),
    ],
)
def test_damaged_tokenizers_are_refused(
    tokenizer: WordpieceTokenizer, tmp_path: Path, name: str, content: str, message: str
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        WordpieceTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_folder_whose_name_is_not_utf_8_is_not_called_damaged(
    tokenizer: WordpieceTokenizer, tmp_path: Path, name: str
) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    folder = tmp_path / os.fsdecode(b"mod\xe9l")
    folder.mkdir()
    shutil.copy(tmp_path / "saved" / name, folder)
    with pytest.raises(UserError, match=rf"{name}: its name is not in UTF-8, as the tokenizer needs it"):
        WordpieceTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", bytes(range(256)), b"[PAD]\n[UNK]\n[CLS]\n[MASK]\na\n"])
def test_damaged_vocabularies_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"vocab\.txt is damaged \(.+\); restore it"):
        WordpieceTokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_is_known_by_its_vocabulary_and_its_normalization(
    tokenizer: WordpieceTokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert WordpieceTokenizer.from_pretrained(tmp_path).fingerprint == tokenizer.fingerprint
    vocabulary = tmp_path / "vocab.txt"
    others = [
        WordpieceTokenizer(vocabulary, **{name: False}).fingerprint
        for name in ("strip_accents", "clean_text", "lowercase")
    ]
    vocabulary.write_text(vocabulary.read_text() + "another\n")
    others.append(WordpieceTokenizer(vocabulary).fingerprint)
    assert len({tokenizer.fingerprint, *others}) == 5
