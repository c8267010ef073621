"""Which class of tokenizers a folder means, and what is built of its files, as transformers has it."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import fastdecode
import pytest
import tiny
import tokenizers
from families import FAMILIES
from fastdecode import errors
from fastdecode.tokenizer_class import tokenizer_class
from fastdecode.tokenizer_files import read_folder
from fastdecode.tokenizer_objects import as_tokenizer
from fastdecode.tokenizer_table import ALIASES, CLASS_OF_TYPE, CLASSES, GENERIC, GENERIC_IDS, MISDECLARED
from tokenizer_compare import GPT2, T5, check, load, pieces, vocabulary, write
from tokenizer_folders import trained


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
    made = tokenizers.Tokenizer.from_str(trained("words", 330, names))
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


def test_a_byt5_model_writes_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = FAMILIES["t5"].write_tiny(tmp_path / "model", vocab_size=384)
    write(made, tokenizer_config={"tokenizer_class": "ByT5Tokenizer"})
    model, theirs = fastdecode.load(made, num_threads=1), AutoTokenizer.from_pretrained(made)
    options: dict[str, Any] = {"max_new_tokens": 40, "do_sample": True, "temperature": 3.0, "top_k": 0}
    for seed in range(3):
        output = model.run("h\u00e9llo", seed=seed, **options)
        assert output.text == theirs.decode(output.token_ids, skip_special_tokens=True)
        assert (
            "".join(chunk.text for chunk in model.stream("h\u00e9llo", seed=seed, **options)) == output.text
        )
    ids = theirs("h\u00e9llo")["input_ids"]
    assert model.run(ids, seed=2, **options).token_ids == output.token_ids
    assert pickle.loads(pickle.dumps(model.tokenizer)).encode("h\u00e9llo") == ids


@pytest.mark.parametrize("cls", ["XLMRobertaTokenizer", "LlamaTokenizer"])
def test_a_declared_class_is_named_even_where_its_files_are_missing(tmp_path: Path, cls: str) -> None:
    write(tmp_path, config=GPT2, tokenizer_config={"tokenizer_class": cls})
    with pytest.raises(
        errors.TokenizerError, match=rf"class is {cls}.*tokenizer=transformers\.AutoTokenizer"
    ):
        load(tmp_path)
    # Where nothing is declared and nothing is there, there is no tokenizer, and nothing to say.
    write(tmp_path, config={"model_type": "xlm-roberta"}, tokenizer_config={})
    assert read_folder(tmp_path, {"model_type": "xlm-roberta"}) is None


@pytest.mark.parametrize(
    ("settings", "model_type"),
    [
        ({"tokenizer_class": "KoGPT2TokenizerFast"}, "gpt2"),
        (
            {"tokenizer_class": "ChessTokenizer", "auto_map": {"AutoTokenizer": ["t.ChessTokenizer", None]}},
            "gpt2",
        ),
        ({"tokenizer_class": "RobertaTokenizer"}, "umt5"),
    ],
)
@pytest.mark.parametrize("files", ["bytes", "words", "other"])
def test_files_under_a_class_that_makes_something_else_of_them(
    tmp_path: Path, settings: dict[str, Any], model_type: str, files: str
) -> None:
    from transformers import AutoTokenizer

    if files == "bytes":
        vocabulary(tmp_path)
    elif files == "words":
        (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")
    else:
        write(tmp_path, vocab={"e4": 0, "e5": 1})
    write(tmp_path, config={"model_type": model_type}, tokenizer_config=settings)
    name = settings["tokenizer_class"].removesuffix("Fast")
    with pytest.raises(ValueError, match="instantiate the backend tokenizer"):
        AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(
        errors.TokenizerError, match=rf"class is {name}.*tokenizer=transformers\.AutoTokenizer"
    ):
        load(tmp_path)
    # A tokenizer.json is taken as it is, whatever the class.
    tiny.byte_level(300).save(str(tmp_path / "tokenizer.json"))
    check(tmp_path)
