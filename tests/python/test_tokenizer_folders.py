"""Which tokenizer a folder has, and with which special tokens, is what transformers makes of it, in every layout.

Folders are drawn at random (tokenizer_folders.py), and what people's folders were found to hold is here by name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import tiny
import tokenizer_folders
import tokenizers
from fastdecode import errors
from fastdecode.folder import optional_json
from fastdecode.tokenizer import Tokenizer
from fastdecode.tokenizer_class import tokenizer_class
from fastdecode.tokenizer_files import read_folder
from fastdecode.tokenizer_objects import as_tokenizer
from fastdecode.tokenizer_table import ALIASES, CLASS_OF_TYPE, CLASSES, GENERIC, GENERIC_IDS, MISDECLARED
from parity import EXAMPLES

T5 = tokenizer_folders.GOLDEN
FOLDERS = 40 * EXAMPLES


def write(folder: Path, **files: Any) -> Path:
    """Writes JSON files, by their names without the extension."""
    for name, value in files.items():
        tokenizer_folders.dump(folder, f"{name}.json", value)
    return folder


def vocabulary(folder: Path, **files: Any) -> Path:
    """Writes vocab.json and merges.txt over bytes, of 257 tokens, and other files."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: index for index, token in enumerate([*alphabet, tiny.END])}
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return write(folder, vocab=tokens, **files)


def pieces(folder: Path, **files: Any) -> Path:
    """Copies T5's SentencePiece model, and writes other files."""
    shutil.copy(T5 / "spiece.model", folder)
    return write(folder, **({"config": {"model_type": "t5"}} | files))


def load(folder: Path) -> Tokenizer:
    tokenizer = read_folder(folder, optional_json(folder / "config.json"))
    assert tokenizer is not None
    return tokenizer


def check(folder: Path) -> Tokenizer:
    """Compares with transformers; returns ours."""
    assert tokenizer_folders.compare(folder) == ("equal", [])
    return load(folder)


GPT2 = {"model_type": "gpt2"}


@pytest.mark.parametrize("seed", range(FOLDERS))
def test_any_folder(tmp_path: Path, seed: int) -> None:
    described = tokenizer_folders.draw(tmp_path, seed)
    outcome, differences = tokenizer_folders.compare(tmp_path)
    assert outcome != "different", (described, differences[:3])


def test_most_folders_are_equal(tmp_path: Path) -> None:
    """The test above compares something: few folders are refused here, and few are useless there."""
    outcomes = []
    for seed in range(20):
        (folder := tmp_path / str(seed)).mkdir()
        tokenizer_folders.draw(folder, seed)
        outcomes.append(tokenizer_folders.compare(folder)[0])
    assert outcomes.count("equal") >= 12, outcomes


# Which class counts.


def test_names_of_classes_are_those_of_transformers() -> None:
    import transformers
    from transformers.models.auto import tokenization_auto

    theirs = tokenization_auto.TOKENIZER_MAPPING_NAMES
    mistral = {name for name, cls in theirs.items() if cls == "MistralCommonBackend"}
    assert not mistral, "the reference runs without mistral-common"
    assert {
        name: cls.removesuffix("Fast") for name, cls in theirs.items() if cls is not None
    } == CLASS_OF_TYPE
    assert MISDECLARED == tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
    assert list(GENERIC_IDS) == tokenization_auto.MODEL_IDS_TO_TOKENIZERS_BACKEND
    for alias, name in ALIASES.items():
        if name == GENERIC:
            continue
        ours, built = (tokenization_auto.tokenizer_class_from_name(each) for each in (alias, name))
        # DistilBERT's is a class of its own that changes nothing.
        assert ours is built or alias == "DistilBertTokenizer"
    named = {
        name.removesuffix("Fast")
        for name in dir(transformers)
        if name.endswith(("Tokenizer", "TokenizerFast"))
    }
    assert named - {"AutoTokenizer"} <= CLASSES | set(ALIASES)


@pytest.mark.parametrize(
    "declared", [None, "GPT2Tokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "", "No"]
)
def test_which_class_a_folder_means(
    tmp_path: Path, declared: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    monkeypatch.setattr(
        PreTrainedTokenizerBase, "from_pretrained", classmethod(lambda cls, *_, **__: cls.__name__)
    )
    settings = {} if declared is None else {"tokenizer_class": declared}
    write(tmp_path, tokenizer_config=settings)
    # What these need is not installed, or they have several tokenizers.
    left_out = {"fastspeech2_conformer", "rag", "EvollaModel"}
    every = sorted(set(CLASS_OF_TYPE) - left_out)
    for model_type in every if declared in (None, "GPT2Tokenizer") else ["gpt2", "umt5"]:
        write(tmp_path, config={"model_type": model_type})
        theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
        ours = tokenizer_class(
            settings, {"model_type": model_type}, name="folder", is_byte_level=lambda: False
        )
        assert ours == ALIASES.get(theirs, theirs), model_type


@pytest.mark.parametrize("where", ["tokenizer_config", "config"])
@pytest.mark.parametrize("cls", ["RobertaTokenizer", "BartTokenizerFast", "LongformerTokenizer"])
def test_roberta_over_the_files_of_gpt2(tmp_path: Path, cls: str, where: str) -> None:
    config = GPT2 | ({"tokenizer_class": cls} if where == "config" else {})
    settings = {"tokenizer_class": cls} if where == "tokenizer_config" else {}
    ours = check(vocabulary(tmp_path, config=config, tokenizer_config=settings))
    begin, *middle, end = ours.encode("ab")
    assert (ours.decode([begin]), ours.decode([end])) == ("<s>", "</s>")
    assert len(middle) == 2


def test_t5_with_a_vocabulary_of_another_class_beside_it(tmp_path: Path) -> None:
    vocabulary(pieces(tmp_path, tokenizer_config={"tokenizer_class": "T5Tokenizer"}))
    assert check(tmp_path).encode("Hello world") == [8774, 296, 1]


@pytest.mark.parametrize(
    "cls", ["AlbertTokenizer", "XLNetTokenizer", "PegasusTokenizerFast", "LlamaTokenizer"]
)
def test_other_classes_over_pieces_are_refused_by_name(tmp_path: Path, cls: str) -> None:
    pieces(tmp_path, tokenizer_config={"tokenizer_class": cls})
    with pytest.raises(errors.TokenizerError, match=cls.removesuffix("Fast")) as caught:
        load(tmp_path)
    assert cls == "LlamaTokenizer" or "tokenizer=" in str(caught.value)


@pytest.mark.parametrize("model_type", ["mt5", "umt5"])
@pytest.mark.parametrize("cls", ["MT5Tokenizer", "T5Tokenizer", None])
def test_pieces_of_mt5_and_umt5(tmp_path: Path, model_type: str, cls: str | None) -> None:
    settings = {} if cls is None else {"tokenizer_class": cls}
    pieces(tmp_path, config={"model_type": model_type}, tokenizer_config=settings)
    # transformers refuses most of these; the pieces are T5's all the same.
    assert load(tmp_path).encode("Hello world") == [8774, 296, 1]


@pytest.mark.parametrize(
    "cls",
    [
        "RobertaTokenizer",
        "BartTokenizer",
        "CodeGenTokenizer",
        "Qwen2Tokenizer",
        "GPTNeoXTokenizer",
        "BlenderbotTokenizer",
    ],
)
@pytest.mark.parametrize("prefix_space", [None, True, False])
def test_classes_rebuild_tokenizer_json(
    tmp_path: Path, byte_level: tokenizers.Tokenizer, cls: str, *, prefix_space: bool | None
) -> None:
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.normalizer = tokenizers.normalizers.Lowercase()
    changed.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{tiny.END} $A", special_tokens=[(tiny.END, 0)]
    )
    changed.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": cls} | ({} if prefix_space is None else {"add_prefix_space": prefix_space})
    ours = check(write(tmp_path, config=GPT2, tokenizer_config=settings))
    assert "HELLO" in ours.decode(ours.encode("HELLO"))


@pytest.mark.parametrize(
    "cls", ["PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "MyTokenizer"]
)
def test_generic_classes_take_tokenizer_json_as_it_is(
    tmp_path: Path, byte_level: tokenizers.Tokenizer, cls: str
) -> None:
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.normalizer = tokenizers.normalizers.Lowercase()
    changed.save(str(tmp_path / "tokenizer.json"))
    ours = check(
        write(tmp_path, config=GPT2, tokenizer_config={"tokenizer_class": cls, "add_prefix_space": True})
    )
    assert ours.decode(ours.encode("HELLO")) == "hello"


def test_llama_over_a_file_of_bytes(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    check(write(tmp_path, config=GPT2, tokenizer_config={"tokenizer_class": "LlamaTokenizerFast"}))


@pytest.mark.parametrize("with_config", [True, False])
def test_a_folder_without_a_class_is_its_file(
    tmp_path: Path, byte_level: tokenizers.Tokenizer, *, with_config: bool
) -> None:
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.normalizer = tokenizers.normalizers.Lowercase()
    changed.save(str(tmp_path / "tokenizer.json"))
    if with_config:
        write(tmp_path, config={"some": "thing"})
    check(tmp_path)
    for given in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json"):
        ours = as_tokenizer(given)
        assert ours.decode(ours.encode("HELLO")) == "hello"
    # With a model_type it is GPT-2's.
    write(tmp_path, config=GPT2)
    ours = as_tokenizer(tmp_path)
    assert ours.decode(ours.encode("HELLO")) == "HELLO"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": False},
        {"tokenize_chinese_chars": False},
        {"strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"never_split": ["wolf"], "do_basic_tokenize": False},
        {"cls_token": None, "sep_token": "[PAD]"},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_bert(tmp_path: Path, settings: dict[str, Any], form: str) -> None:
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    made = tokenizers.Tokenizer.from_str(tokenizer_folders.trained("words", 330, names))
    if form == "tokenizer.json":
        made.save(str(tmp_path / form))
    else:
        tokens = sorted(made.get_vocab(), key=made.get_vocab().__getitem__)
        (tmp_path / form).write_text("\n".join(tokens) + "\n", encoding="utf-8")
    ours = check(
        write(tmp_path, config=GPT2, tokenizer_config={"tokenizer_class": "BertTokenizer"} | settings)
    )
    if not settings:
        assert ours.encode("Ein WOLF") == ours.encode("ein wolf")
        assert ours.encode("")[0] == made.token_to_id("[CLS]")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"extra_ids": 0},
        {"additional_special_tokens": [f"<extra_id_{n}>" for n in range(125)]},
        {"extra_special_tokens": ["<a>", "b"]},
        {"eos_token": "<end>", "clean_up_tokenization_spaces": True},
        {
            "added_tokens_decoder": {
                "0": {"content": "<pad>"},
                "1": {"content": "</s>"},
                "2": {"content": "<unk>"},
            }
        },
        {"split_special_tokens": True},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_byt5(tmp_path: Path, settings: dict[str, Any]) -> None:
    write(
        tmp_path,
        config={"model_type": "t5"},
        tokenizer_config={"tokenizer_class": "ByT5Tokenizer"} | settings,
    )
    ours = check(tmp_path)
    ids = [ord(character) + 3 for character in "hey"]
    assert ours.encode("hey", add_special_tokens=False) == ids
    assert ours.decode([*"é".encode()][:1]) == ""
    assert ours.decode([byte + 3 for byte in "é".encode()]) == "é"
    pushed = ours.detokenizer()
    assert [pushed.push([byte + 3]) for byte in "é".encode()] == ["", "é"]


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_pieces_of_any_type_are_t5s(tmp_path: Path, kind: int) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((T5 / "spiece.model").read_bytes())
    del model.pieces[2000:]
    model.trainer_spec.model_type = kind
    pieces(tmp_path)
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    assert check(tmp_path).encode("the <extra_id_0>") == [8, 2099, 1]


def test_a_model_without_a_usable_class_computes_ids(tmp_path: Path, folder: Path) -> None:
    made = shutil.copytree(folder, tmp_path / "model")
    write(made, tokenizer_config={"tokenizer_class": "DebertaV2Tokenizer"})
    model = fastdecode.load(made, num_threads=1)
    with pytest.warns(errors.FastdecodeWarning, match="DebertaV2Tokenizer") as warned:
        outputs = [model.run([1, 2, 3], max_new_tokens=2) for _ in range(2)]
    assert len(warned) == 1
    assert [output.text for output in outputs] == [None, None]
    wanted = r"DebertaV2Tokenizer.*tokenizer=transformers\.AutoTokenizer"
    with pytest.raises(errors.TokenizerError, match=wanted):
        model.generate("text", max_new_tokens=2)
    with pytest.raises(errors.TokenizerError, match=wanted):
        model.run([1, 2, 3], max_new_tokens=2, stop="x")
    with pytest.raises(errors.TokenizerError, match="DebertaV2Tokenizer"):
        fastdecode.load(made, tokenizer=made)


def test_files_of_another_class_than_the_declared_one(tmp_path: Path) -> None:
    vocabulary(tmp_path, config=GPT2, tokenizer_config={"tokenizer_class": "BertTokenizer"})
    with pytest.raises(
        errors.TokenizerError, match=r"vocab\.txt for a BertTokenizer.*vocab\.json and merges\.txt"
    ):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    write(tmp_path, config={"model_type": "t5"})
    assert load(tmp_path).encode("ab") == [64, 65]  # nothing is declared: what the files say


@pytest.mark.parametrize("name", [3, ["GPT2Tokenizer"], {}])
def test_a_class_that_is_no_name(tmp_path: Path, name: object) -> None:
    vocabulary(tmp_path, config=GPT2, tokenizer_config={"tokenizer_class": name})
    with pytest.raises(errors.ConfigError, match="tokenizer_class"):
        load(tmp_path)


# Special and added tokens.


def test_added_tokens_of_older_folders(tmp_path: Path) -> None:
    vocabulary(tmp_path, config=GPT2, added_tokens={"<user>": 257, "<bot>": 258})
    ours = check(tmp_path)
    assert ours.encode("<user>a<bot>") == [257, 64, 258]
    assert ours.decode([257, 64, 258], skip_special_tokens=True) == "<user>a<bot>"


def test_added_tokens_go_by_their_ids_and_not_by_the_names(tmp_path: Path) -> None:
    of_map = {"sep_token": "<bot>", "pad_token": {"content": "<user>", "lstrip": False}}
    vocabulary(tmp_path, config=GPT2, added_tokens={"<bot>": 258, "<user>": 257}, special_tokens_map=of_map)
    ours = check(tmp_path)
    assert ours.encode("<user>a<bot>") == [257, 64, 258]
    assert ours.decode([257, 64, 258], skip_special_tokens=True) == "a"


@pytest.mark.parametrize("where", ["tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_only_a_list_of_the_settings_makes_added_tokens_special(tmp_path: Path, where: str, key: str) -> None:
    vocabulary(
        tmp_path, config=GPT2, added_tokens={"<user>": 257, "<bot>": 258}, **{where: {key: ["<user>"]}}
    )
    ours = check(tmp_path)
    shown = ours.decode([257, 64, 258], skip_special_tokens=True)
    # Under its older name a list counts only where the settings have it.
    is_special = where == "tokenizer_config" or key == "extra_special_tokens"
    assert shown == ("a<bot>" if is_special else "<user>a<bot>")


def test_the_settings_list_counts_before_that_of_the_map(tmp_path: Path) -> None:
    lists = {
        "tokenizer_config": {"additional_special_tokens": ["<a>"]},
        "special_tokens_map": {"additional_special_tokens": ["<b>"]},
    }
    ours = check(vocabulary(tmp_path, config=GPT2, **lists))
    assert ours.encode("<a>") == [257]
    assert len(ours.encode("<b>")) == 3


def test_t5_keeps_its_sentinels_beside_a_list_in_both_files(tmp_path: Path) -> None:
    names = [f"<extra_id_{number}>" for number in range(100)]
    lists = {
        "tokenizer_config": {"additional_special_tokens": names},
        "special_tokens_map": {"additional_special_tokens": ["<sep>"]},
    }
    assert check(pieces(tmp_path, **lists)).encode("<extra_id_0>")[-2:] == [32099, 1]


@pytest.mark.parametrize("value", [[], None, "absent"])
def test_an_empty_list_is_not_an_absent_one(tmp_path: Path, value: Any) -> None:
    settings = {} if value == "absent" else {"additional_special_tokens": value}
    ours = check(pieces(tmp_path, tokenizer_config=settings))
    whole = ours.encode("a <extra_id_0> b")
    assert whole == ([3, 9, 32099, 3, 115, 1] if value == "absent" else [3, 9, 3, 32099, 3, 115, 1])


@pytest.mark.parametrize("where", ["tokenizer_config", "special_tokens_map"])
def test_tokens_under_names_of_ones_own(tmp_path: Path, where: str) -> None:
    ours = check(vocabulary(tmp_path, config=GPT2, **{where: {"context_token": "<ctx>"}}))
    ids = ours.encode("a<ctx>")
    assert ids == [64, 257]
    assert ours.decode(ids, skip_special_tokens=True) == "a"


@pytest.mark.parametrize("cls", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_flags_of_the_settings_count_before_those_of_the_file(
    tmp_path: Path, byte_level: tokenizers.Tokenizer, cls: str
) -> None:
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.add_tokens([tokenizers.AddedToken("<x>", lstrip=False, special=False)])
    changed.save(str(tmp_path / "tokenizer.json"))
    token = {"content": "<x>", "lstrip": True, "rstrip": True, "special": True, "normalized": False}
    index = str(changed.token_to_id("<x>"))
    settings = {"tokenizer_class": cls, "added_tokens_decoder": {index: token}}
    ours = check(write(tmp_path, config=GPT2, tokenizer_config=settings))
    ids = ours.encode("a <x> b")
    assert ours.decode(ids) == "a<x>b"
    assert ours.decode(ids, skip_special_tokens=True) == "ab"


@pytest.mark.parametrize("cls", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_a_named_token_becomes_special(tmp_path: Path, byte_level: tokenizers.Tokenizer, cls: str) -> None:
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.add_tokens([tokenizers.AddedToken("<x>", special=False)])
    changed.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": cls, "sep_token": "<x>"}
    ours = check(write(tmp_path, config=GPT2, tokenizer_config=settings))
    assert ours.decode(ours.encode("a<x>"), skip_special_tokens=True) == "a"


@pytest.mark.parametrize("where", ["tokenizer_config", "special_tokens_map"])
def test_null_takes_a_token_away(tmp_path: Path, where: str) -> None:
    ours = check(vocabulary(tmp_path, config=GPT2, **{where: {"bos_token": None}}))
    assert (ours.bos_token, ours.eos_token) == (None, tiny.END)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json"])
@pytest.mark.parametrize("cls", ["GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer"])
def test_begin_and_end(
    tmp_path: Path, byte_level: tokenizers.Tokenizer, cls: str, form: str, *, bos: bool, eos: bool
) -> None:
    settings = {"tokenizer_class": cls, "add_bos_token": bos, "add_eos_token": eos, "bos_token": "<b>"}
    if form == "tokenizer.json":
        byte_level.save(str(tmp_path / form))
    else:
        vocabulary(tmp_path)
    ours = check(write(tmp_path, config=GPT2, tokenizer_config=settings))
    # With a tokenizer.json these settings count no more.
    around = form == "vocab.json"
    assert len(ours.encode("a")) == 1 + (around and bos) + (around and eos)


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "a"}}}},
        {"tokenizer_config": {"added_tokens_decoder": {"300": "a"}}},
        {"tokenizer_config": {"extra_special_tokens": 3}},
        {"tokenizer_config": {"eos_token": 3}},
        {"special_tokens_map": {"eos_token": {"no": "content"}}},
        {"added_tokens": {"<a>": "x"}},
        {"added_tokens": {"<a>": None}},
    ],
    ids=str,
)
def test_tokens_that_are_none(tmp_path: Path, change: dict[str, Any]) -> None:
    vocabulary(tmp_path, config=GPT2, **change)
    with pytest.raises(errors.ConfigError, match=next(iter(change))):
        load(tmp_path)


def test_versions_of_tokenizer_json(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    byte_level.save(str(tmp_path / "tokenizer.json"))
    lower = tokenizers.Tokenizer.from_str(byte_level.to_str())
    lower.normalizer = tokenizers.normalizers.Lowercase()
    lower.save(str(tmp_path / "tokenizer.4.0.0.json"))
    names = ["tokenizer.json", "tokenizer.4.0.0.json", "tokenizer.99.0.0.json"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "fast_tokenizer_files": names}
    ours = check(write(tmp_path, config=GPT2, tokenizer_config=settings))
    assert ours.decode(ours.encode("HELLO")) == "hello"


def test_truncation_and_padding_of_tokenizer_json(tmp_path: Path, byte_level: tokenizers.Tokenizer) -> None:
    changed = tokenizers.Tokenizer.from_str(byte_level.to_str())
    changed.enable_truncation(3, direction="left")
    changed.enable_padding(length=9, pad_token="<fill>")
    changed.save(str(tmp_path / "tokenizer.json"))
    ours = check(
        write(tmp_path, config=GPT2, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    assert ours.truncation_side == "left"
    assert ours.decode(ours.encode("a long text<fill>"), skip_special_tokens=True) == "a long text"


def test_a_vocabulary_without_a_token_for_what_is_unknown(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="<none>"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(errors.TokenizerError, match="a vocabulary that has"):
        as_tokenizer(tmp_path).encode("b")


def test_the_description_of_a_drawn_folder_is_of_its_seed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = (tokenizer_folders.draw(tmp_path / name, 7) for name in ("one", "two"))
    assert one == two
    assert json.dumps(sorted(path.read_bytes().hex() for path in (tmp_path / "one").iterdir())) == json.dumps(
        sorted(path.read_bytes().hex() for path in (tmp_path / "two").iterdir())
    )
