"""Adapters of PEFT: any that peft makes gives what its merge gives, and nothing in one is passed over."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import fastdecode
import numpy as np
import peft_folders as made
import pytest
import transformers
from adapter_checks import GPT2, T5, hold, load
from families import FAMILIES, Family
from families import Recipe as Base
from fastdecode import errors
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from parity import EXAMPLES, PHASES
from peft_folders import CONFIG, SAFE, adapter, change, gpt2, t5
from reference import Reference

EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@EVERY
def test_any_adapter_gives_what_peft_gives(family: Family) -> None:
    @settings(max_examples=max(int(20 * family.share), 5) * EXAMPLES, phases=PHASES)
    @given(base=family.recipes(), data=st.data(), second=st.sampled_from([False, False, False, True]))
    def hold_any(base: Base, data: st.DataObject, second: bool) -> None:
        drawn = [data.draw(made.recipes(family, base.vocab)) for _ in range(1 + second)]
        if second:
            drawn = [made.without_size(one) for one in drawn]
        with tempfile.TemporaryDirectory() as tmp:
            folder = family.write(base, Path(tmp) / "base")
            paths = [Path(tmp) / f"adapter-{n}" for n in range(len(drawn))]
            try:
                for recipe, path in zip(drawn, paths, strict=True):
                    made.make(made.base_of(family, folder, recipe.more), recipe, path)
            except (ValueError, TypeError, AttributeError):
                reject()  # what peft refuses or fails to make, nobody has
            if drawn[0].more and not made.has_vocabulary(paths[0]):
                reject()  # the file says nothing of the new size, and the rows are not in it
            if drawn[0].more and made.lacks_embedding(base, paths[0]):
                with pytest.raises(errors.CheckpointError, match="rows"):
                    fastdecode.load(folder, adapter=paths)
                return
            if drawn[0].more and made.lacks_bias(family, paths[0]):
                with pytest.raises(errors.CheckpointError, match=r"(rows|values), as "):
                    fastdecode.load(folder, adapter=paths)
                return
            try:
                theirs = made.reference(family, folder, paths, drawn[0].more)
            except (KeyError, AttributeError):
                reject()  # of tied modules that are inside of a saved one peft misses tensors that it did not save
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", errors.FastdecodeWarning)
                ours = fastdecode.load(folder, adapter=paths)
            what = f"{drawn} over {base}"
            assert ours.config["vocab_size"] == base.vocab + drawn[0].more
            vocab = base.vocab + min(drawn[0].more, 0)
            hold(ours, theirs, family, vocab, what, **base.for_transformers)

    hold_any()


class TestWhere:
    """Which base and which adapters a folder stands for."""

    def test_an_adapter_alone_names_its_base(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one", config={"target_modules": ["c_attn"]})
        ours = load(one)
        hold(ours, made.reference(GPT2, base, [one]), GPT2, 50)
        assert isinstance(ours, fastdecode.CausalLM)
        assert ours.info()["adapters"] == [str(one.resolve())]
        # transformers itself follows the name in the same way.
        theirs = Reference(one)
        hold(ours, theirs, GPT2, 50)

    def test_the_class_methods_take_adapters(self, tmp_path: Path) -> None:
        base = t5(tmp_path / "base")
        one = adapter(base, tmp_path / "one", T5)
        theirs = made.reference(T5, base, [one])
        hold(fastdecode.Seq2SeqLM.load(one), theirs, T5, 50)
        hold(fastdecode.Seq2SeqLM.load(base, adapter=str(one)), theirs, T5, 50)
        with pytest.raises(errors.UnsupportedModelError):
            fastdecode.CausalLM.load(one)

    def test_a_relative_base_is_relative_to_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one")
        change(one, base_model_name_or_path="base")
        monkeypatch.chdir(tmp_path)
        theirs = made.reference(GPT2, base, [one])
        ours = load("one")
        hold(ours, theirs, GPT2, 50)
        hold(ours, Reference(Path("one")), GPT2, 50)
        # A pickle names the base where it was, whatever the current folder is.
        dumped = pickle.dumps(ours)
        monkeypatch.chdir(one)
        hold(pickle.loads(dumped), theirs, GPT2, 50)
        with pytest.raises(errors.ModelNotFoundError, match="base_model_name_or_path"):
            fastdecode.load(".")

    def test_an_adapter_beside_the_weights_is_applied_to_them(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one")
        both = shutil.copytree(base, tmp_path / "both")
        for name in (CONFIG, SAFE):
            shutil.copy(one / name, both)
        change(both, base_model_name_or_path=str(tmp_path / "nowhere"))
        ours = load(both)
        hold(ours, Reference(both), GPT2, 50)
        hold(ours, made.reference(GPT2, base, [one]), GPT2, 50)
        assert ours.info()["adapters"] == [str(both.resolve())]
        again = pickle.loads(pickle.dumps(ours))
        assert again.info()["adapters"] == ours.info()["adapters"]
        np.testing.assert_array_equal(again.logits([1, 2, 3]), ours.logits([1, 2, 3]))

    def test_a_given_adapter_comes_after_the_one_in_the_folder(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one, two = (adapter(base, tmp_path / name, seed=n) for n, name in enumerate(("one", "two")))
        ours = load(one, adapter=two)
        hold(ours, made.reference(GPT2, base, [one, two]), GPT2, 50)
        assert ours.info()["adapters"] == [str(one.resolve()), str(two.resolve())]
        again = pickle.loads(pickle.dumps(ours))
        np.testing.assert_array_equal(again.logits([1, 2, 3]), ours.logits([1, 2, 3]))

    def test_without_an_adapter_none_is_named(self, tmp_path: Path) -> None:
        assert load(gpt2(tmp_path)).info()["adapters"] == []

    def test_a_bundled_model_is_a_base(self, tmp_path: Path) -> None:
        demo = Path(fastdecode.__file__).parent / "demo" / "demo-stories"
        one = adapter(demo, tmp_path / "one")
        change(one, base_model_name_or_path="demo-stories")
        ours = load(one)
        hold(ours, made.reference(GPT2, demo, [one]), GPT2, 300)
        assert ours.generate("Once upon a time", max_new_tokens=3)

    @pytest.mark.parametrize("name", [None, "", "demo-nothing-here/at all"])
    def test_a_base_that_is_none(self, tmp_path: Path, name: str | None) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one")
        change(one, base_model_name_or_path=name)
        with pytest.raises((errors.ConfigError, errors.ModelNotFoundError), match="base_model_name_or_path"):
            fastdecode.load(one)
        hold(load(base, adapter=one), made.reference(GPT2, base, [one]), GPT2, 50)

    def test_a_base_that_is_an_adapter(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one")
        for name in (tmp_path / "one", tmp_path / "two"):
            two = shutil.copytree(one, tmp_path / "two", dirs_exist_ok=True)
            change(two, base_model_name_or_path=str(name))
            with pytest.raises(errors.ConfigError, match="an adapter alone"):
                fastdecode.load(two)

    def test_a_base_without_weights_or_quantized(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one")
        change(
            base, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
        )
        with pytest.raises(errors.ConfigError, match="4 bits"):
            fastdecode.load(one)
        change(base, "config.json", quantization_config=None)
        (base / "model.safetensors").unlink()
        with pytest.raises(errors.FileMissingError):
            fastdecode.load(one)

    @pytest.mark.parametrize("given", [3, [3], "", [""], b"one", {"a": 1}])
    def test_what_is_no_adapter(self, tmp_path: Path, given: Any) -> None:
        with pytest.raises(errors.OptionError, match="adapter"):
            fastdecode.load(gpt2(tmp_path), adapter=given)

    def test_a_folder_that_is_no_adapter(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        with pytest.raises(errors.FileMissingError, match=CONFIG):
            fastdecode.load(base, adapter=base)
        with pytest.raises(errors.ModelNotFoundError, match="adapter"):
            fastdecode.load(base, adapter=tmp_path / "nowhere")
        with pytest.raises(errors.ModelNotFoundError, match=r"adapter_config\.json.*got a file"):
            fastdecode.load(base, adapter=base / "config.json")

    def test_a_revision_needs_something_on_the_hub(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one")
        change(one, revision="main")  # what training noted means nothing for a folder
        load(one)
        with pytest.raises(errors.OptionError, match="revision"):
            fastdecode.load(one, revision="main")
        with pytest.raises(errors.OptionError, match=r"revision.*'main'"):
            fastdecode.load(base, adapter=f"{one}@main")
        for name in (CONFIG, SAFE):
            shutil.copy(one / name, base)
        with pytest.raises(errors.OptionError, match="revision"):
            fastdecode.load(base, revision="main")


class TestText:
    """Tokenizer and generation defaults."""

    def test_the_adapters_tokenizer_wins(self, tmp_path: Path, byte_level: Any) -> None:
        base = gpt2(tmp_path / "base", vocab_size=320)
        one = adapter(base, tmp_path / "one")
        assert load(one).tokenizer is None
        byte_level.save(str(base / "tokenizer.json"))
        own = load(one)
        assert own.tokenizer is not None
        changed = json.loads((base / "tokenizer.json").read_text())
        changed["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
            },
        }
        (one / "tokenizer.json").write_text(json.dumps(changed))
        (one / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        theirs = load(one)
        assert theirs.tokenizer.encode("a") == [*own.tokenizer.encode("a"), 0]
        two = adapter(base, tmp_path / "two")
        assert load(base, adapter=[one, two]).tokenizer.encode("a") == theirs.tokenizer.encode("a")
        assert load(one, tokenizer=byte_level).tokenizer.encode("a") == own.tokenizer.encode("a")

    def test_a_tokenizer_without_a_vocabulary_wins_too(self, tmp_path: Path) -> None:
        base = t5(tmp_path / "base")
        tokenizer = transformers.ByT5Tokenizer(extra_ids=0)
        tokenizer.save_pretrained(base)
        one = adapter(base, tmp_path / "one", T5)
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(one)
        assert load(one).tokenizer.encode("a<new>") == tokenizer("a<new>")["input_ids"]
        assert load(base).tokenizer.encode("a<new>") != tokenizer("a<new>")["input_ids"]

    def test_defaults_are_those_of_the_base(self, tmp_path: Path) -> None:
        base = gpt2(tmp_path / "base")
        one = adapter(base, tmp_path / "one")
        (base / "generation_config.json").write_text('{"max_new_tokens": 3}')
        (one / "generation_config.json").write_text('{"max_new_tokens": 7}')
        assert len(load(one).run([1, 2]).token_ids) == 3
        assert Reference(one).model.generation_config.max_new_tokens == 3

    def test_the_command(self, tmp_path: Path, byte_level: Any, capsys: pytest.CaptureFixture[str]) -> None:
        from fastdecode.cli import main

        base = gpt2(tmp_path / "base", vocab_size=320)
        byte_level.save(str(base / "tokenizer.json"))
        paths = [adapter(base, tmp_path / name, seed=n, spread=0.5) for n, name in enumerate(("one", "two"))]
        wanted = load(base, adapter=paths).generate("The wolf", max_new_tokens=8, do_sample=False)
        flags = [text for path in paths for text in ("--adapter", str(path))]
        assert main(["run", str(base), "The wolf", "--max-new-tokens", "8", "--quiet", *flags]) == 0
        assert capsys.readouterr().out.rstrip("\n") == wanted.rstrip("\n")
        assert main(["info", str(base), "--json", *flags]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["model"]["adapters"] == [str(path.resolve()) for path in paths]
        (paths[1] / SAFE).unlink()
        assert main(["run", str(base), "The wolf", *flags]) == 1
        assert "adapter_model.safetensors" in capsys.readouterr().err

    def test_a_pipeline(self, tmp_path: Path, byte_level: Any) -> None:
        base = gpt2(tmp_path / "base", vocab_size=320)
        byte_level.save(str(base / "tokenizer.json"))
        one = adapter(base, tmp_path / "one", spread=0.5)
        options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
        tell = fastdecode.pipeline("text-generation", base, adapter=one, **options)
        wanted = "The wolf" + load(base, adapter=one).generate("The wolf", **options)
        assert tell("The wolf") == [{"generated_text": wanted}]
        with pytest.raises(errors.OptionError, match="adapter"):
            fastdecode.pipeline("text-generation", load(base), adapter=one)
