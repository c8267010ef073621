"""Writes tests/golden/pipelines/: two tiny models, and what the pipelines of transformers 4.57.6 answer with them.

    pip install --target OLD transformers==4.57.6
    PYTHONPATH=OLD python tools/make_pipeline_golden.py

Needs torch. Folders that are there are kept; models are random; every vocabulary entry is a piece of the texts below.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from collections import UserDict
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.pipelines import text2text_generation, text_generation

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "pipelines"
VERSION = "4.57.6"

TEXTS = [
    "translate English to German: That is good.",
    "translate English to French: I am happy to see you. summarize: the king said that he was ill.",
    "Where are you going so early, little one? To my grandmother's house, by the wood.",
    "The wolf thought to himself: what a tender young creature; she will be better to eat than the old woman.",
]
TASKS = {
    "summarization": {
        "early_stopping": True,
        "length_penalty": 2.0,
        "max_length": 200,
        "min_length": 6,
        "no_repeat_ngram_size": 3,
        "num_beams": 4,
        "prefix": "summarize: ",
    },
    "translation_en_to_de": {
        "early_stopping": True,
        "max_length": 300,
        "num_beams": 3,
        "prefix": "translate English to German: ",
    },
    "translation_en_to_fr": {"num_beams": 1, "prefix": "translate English to French: "},
}
NEW = {"max_new_tokens": 9}
# In the call: transformers lets a task's entry win over what pipeline() is given.
GREEDY = {"do_sample": False}

# Task, arguments of pipeline(), input, arguments of the call.
Case = tuple[str, dict[str, Any], Any, dict[str, Any]]
CASES: list[Case] = [
    ("translation_en_to_de", NEW, "the king", {}),
    ("translation_en_to_de", NEW, ["the king", "the old woman is ill."], {}),
    ("translation_en_to_de", NEW, ["the king"], {"num_return_sequences": 2}),
    ("translation_en_to_de", NEW, "the king", {"num_return_sequences": 3, "length_penalty": 0.5}),
    ("translation_en_to_de", NEW, "the king", {"return_tensors": True}),
    ("translation_en_to_de", NEW, "the king", {"num_beams": 1, "early_stopping": False}),
    ("translation_en_to_de", NEW, [], {}),
    ("translation_en_to_fr", NEW, "the king", {}),
    ("translation_en_to_fr", NEW, "the king", {"num_beams": 5, "src_lang": "en", "tgt_lang": "fr"}),
    ("translation_en_to_xx", NEW, "the king", {}),
    ("translation", NEW, "the king", {}),
    ("summarization", NEW, TEXTS[3], {}),
    ("summarization", NEW, [TEXTS[2], TEXTS[3]], {"min_length": 2, "no_repeat_ngram_size": 0}),
    ("summarization", {**NEW, "truncation": True}, " ".join(TEXTS), {}),
    ("summarization", NEW, " ".join(TEXTS), {"return_tensors": True, "truncation": True}),
    ("text2text-generation", NEW, "little one?", {}),
    ("text2text-generation", NEW, ["little one?", "the wolf", ""], {"num_beams": 2}),
    ("text2text-generation", NEW, "little one , where ?", {"clean_up_tokenization_spaces": True}),
    ("text2text-generation", NEW, "the wood", {"stop_sequence": "e", "num_beams": 1}),
    ("text2text-generation", {}, "the wood", {"max_new_tokens": 3, "return_text": True}),
    ("text-generation", NEW, "the king", GREEDY),
    ("text-generation", NEW, ["the king", "Where are you"], GREEDY),
    ("text-generation", NEW, "the king", {**GREEDY, "return_full_text": False}),
    ("text-generation", NEW, "the king", {**GREEDY, "return_tensors": True}),
    ("text-generation", NEW, ["the"], {**GREEDY, "num_beams": 3, "num_return_sequences": 2}),
    ("text-generation", NEW, "the king", {**GREEDY, "prefix": "The wolf thought: "}),
    ("text-generation", NEW, "the king", {**GREEDY, "stop_sequence": "e"}),
    ("text-generation", NEW, "", GREEDY),
    ("text-generation", NEW, TEXTS[3], {**GREEDY, "truncation": True, "max_length": 6, "max_new_tokens": 5}),
    (
        "text-generation",
        {**NEW, "truncation": True},
        TEXTS[3],
        {**GREEDY, "max_length": 9, "return_tensors": True},
    ),
    ("text2text-generation", {**NEW, "truncation": True}, " ".join(TEXTS), {"num_return_sequences": 2}),
    (
        "summarization",
        NEW,
        TEXTS[2],
        {"return_tensors": True, "num_return_sequences": 2, "max_new_tokens": 7},
    ),
]

# The same with other settings in tokenizer_config.json.
LEFT = {"truncation_side": "left"}
SET_CASES: list[tuple[dict[str, Any], Case]] = [
    (LEFT, ("summarization", {**NEW, "truncation": True}, " ".join(TEXTS), {})),
    (LEFT, ("text2text-generation", NEW, " ".join(TEXTS), {"truncation": True, "return_tensors": True})),
    (LEFT, ("text-generation", NEW, TEXTS[3], {**GREEDY, "truncation": True, "max_length": 6})),
    ({**LEFT, "model_max_length": 7}, ("text-generation", NEW, TEXTS[2], {**GREEDY, "truncation": True})),
]

# What is done by hand: task, input, options of preprocess, of forward and of postprocess.
Steps = tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any]]
STEPS: list[Steps] = [
    ("text-generation", "the king", {}, {**NEW, **GREEDY}, {}),
    (
        "text-generation",
        "the king",
        {"prefix": "The wolf: "},
        {**NEW, **GREEDY},
        {"skip_special_tokens": False},
    ),
    ("text-generation", "", {}, {**NEW, **GREEDY}, {}),
    (
        "text-generation",
        "the",
        {},
        {**NEW, **GREEDY, "num_beams": 3, "num_return_sequences": 2},
        {"return_type": 1},
    ),
    (
        "text-generation",
        TEXTS[3],
        {"truncation": True, "max_length": 6},
        {**NEW, **GREEDY},
        {"return_type": 0},
    ),
    ("translation_en_to_de", "the king", {}, NEW, {}),
    ("translation_en_to_fr", "the king", {}, {**NEW, "num_beams": 4, "num_return_sequences": 3}, {}),
    ("summarization", TEXTS[3], {"truncation": True}, NEW, {"return_type": 0}),
    ("text2text-generation", "little one , where ?", {}, NEW, {"clean_up_tokenization_spaces": True}),
]


def end_with(tokenizer: Tokenizer, token: str) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {token}", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def write_t5(folder: Path) -> None:
    tokenizer = Tokenizer(models.Unigram())
    metaspace: dict[str, Any] = {"replacement": "\u2581", "prepend_scheme": "always"}
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
    tokenizer.decoder = decoders.Metaspace(**metaspace)
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXTS * 4, trainers.UnigramTrainer(vocab_size=180, special_tokens=special, unk_token="<unk>")
    )
    end_with(tokenizer, "</s>")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=24,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    config = transformers.T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=32,
        d_kv=8,
        num_heads=4,
        d_ff=48,
        num_layers=2,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
        task_specific_params=TASKS,
    )
    torch.manual_seed(4)
    save(transformers.T5ForConditionalGeneration(config), folder, 2.0)


def write_gpt2(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    transformers.GPT2TokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_embd=32,
        n_head=4,
        n_layer=2,
        n_positions=96,
        bos_token_id=0,
        eos_token_id=0,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    )
    torch.manual_seed(5)
    save(transformers.GPT2LMHeadModel(config), folder, 12.0)


def save(model: Any, folder: Path, factor: float) -> None:
    """Saves a model whose weights are spread so far that its choices are not close calls."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 2 and "relative" not in name:
                tensor.mul_(factor)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)


def plain(value: Any) -> Any:
    """Returns an answer as JSON can hold it."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, UserDict):
        value = value.data
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def folder_of(task: str) -> Path:
    return GOLDEN / ("gpt2" if task == "text-generation" else "t5")


def answer(settings: dict[str, Any], case: Case) -> dict[str, Any]:
    """Returns what a pipeline answers, with changes of tokenizer_config.json."""
    task, created, inputs, call = case
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder_of(task), copy, dirs_exist_ok=True)
        file = Path(copy, "tokenizer_config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        pipe = transformers.pipeline(task, model=copy, **created)
        answer = plain(pipe(inputs, **call))
    kept = {"task": task, "created": created, "inputs": inputs, "call": call, "answer": answer}
    return kept | ({"tokenizer_config": settings} if settings else {})


def by_hand(steps: Steps) -> dict[str, Any]:
    """Returns what each step of a pipeline gives."""
    task, text, before, options, after = steps
    pipe = transformers.pipeline(task, model=str(folder_of(task)))
    inputs = pipe.preprocess(text, **before)
    kept = {"task": task, "text": text, "options": [before, options, after], "inputs": plain(inputs)}
    outputs = pipe.forward(inputs, **options)
    if "return_type" in after:
        module = text_generation if task == "text-generation" else text2text_generation
        after = {"return_type": module.ReturnType(after["return_type"])}
    return kept | {"outputs": plain(outputs), "records": plain(pipe.postprocess(outputs, **after))}


def main() -> None:
    if transformers.__version__ != VERSION:
        raise SystemExit(f"transformers {VERSION} is needed, got {transformers.__version__}")
    transformers.utils.logging.set_verbosity_error()
    for name, write in (("t5", write_t5), ("gpt2", write_gpt2)):
        if not (GOLDEN / name).exists():  # training gives other scores every time
            write(GOLDEN / name)
    warnings.simplefilter("ignore")
    cases = [answer({}, case) for case in CASES] + [answer(*case) for case in SET_CASES]
    expected = {"transformers": VERSION, "cases": cases, "steps": [by_hand(steps) for steps in STEPS]}
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (GOLDEN / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
