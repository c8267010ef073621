"""What a model does with conversations: ids and texts of them, and where the model's turn ends.

`Conversing` is what every model with a decoder has; a `Reading` is how the conversations of one call are read. Nothing
here imports jinja2, and what does is imported when a template is rendered.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import TYPE_CHECKING, Any

from .arrays import bad_option, brief, is_conversation, spelt
from .chat_options import RESERVED, Asked, asked
from .errors import ChatTemplateError, FastdecodeWarning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .chat_templates import Chosen, Templates
    from .chat_turns import TurnEnd
    from .options import Options
    from .tokenizer import Tokenizer

# Arguments of transformers' apply_chat_template that change nothing here, with the values that they may have.
_PASSED_OVER: dict[str, tuple[Any, ...]] = {
    "max_length": (None,),
    "padding": (False, "do_not_pad"),
    "return_assistant_tokens_mask": (False,),
    "return_dict": (False, None),
    "return_tensors": (None,),
    "tokenizer_kwargs": (None, {}),
    "truncation": (False,),
}

# A text that no template writes by itself.
_MARK = "Qfd4mark"


class Conversing:
    """What a model does with conversations; part of every `LanguageModel`."""

    def apply_chat_template(
        self,
        messages: Any,  # noqa: ANN401 (messages, or lists of them)
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        sanitize_control_tokens: bool = False,
        **variables: Any,  # noqa: ANN401 (whatever a template takes)
    ) -> Any:  # noqa: ANN401 (ids or a text, or a list of these)
        r"""Makes ids, or the text, of a conversation, as transformers' `tokenizer.apply_chat_template` does.

        `generate` and its like do the same with a list of messages as their prompt.

        Args:
            messages: Mappings with `role` and `content`; or a list of such conversations.
            tokenize: Return ids; False for the text.
            add_generation_prompt: Open the answer of the model behind the last message.
            continue_final_message: Leave the last message open, to be continued; or the name of its field that is.
                It takes the place of `add_generation_prompt`.
            tools: JSON schemas, or functions with type hints and a docstring in Google's style.
            documents: Dictionaries with title and text, for templates that take any.
            chat_template: A template's name in the model's folder, or a layout's ("chatml", "alpaca", "vicuna",
                "plain"), or the text of a template. Without it the folder's own counts: "tool_use" where there are
                tools and such a template, else "default".
            sanitize_control_tokens: Encode control tokens in the texts of messages, tools, documents and variables
                as ordinary text.
            **variables: What the template sees beside these (`enable_thinking=False`).

        Returns:
            A list of ids, or a text; for several conversations a list of these.

        Raises:
            ChatTemplateError: The folder has no template, or none of this name; or the template fails with these
                messages, takes longer than 5 seconds, or makes more than 16 MB of text.
            OptionError: The messages or another argument cannot be used.
            TokenizerMissing: The model has no tokenizer.

        Example:
            >>> messages = [{"role": "user", "content": "Tell me about a wolf."}]
            >>> model.apply_chat_template(messages, tokenize=False, chat_template="plain")
            'Human: Tell me about a wolf.\n\nAssistant:'
        """
        for name, values in _PASSED_OVER.items():
            if name in variables and not any(variables[name] == value for value in values):
                raise bad_option(name, " or ".join(map(repr, values)), brief(variables[name]))
        variables = {name: value for name, value in variables.items() if name not in _PASSED_OVER}
        if continue_final_message and add_generation_prompt:
            add_generation_prompt = False
        options = {
            "chat_template": chat_template,
            "tools": tools,
            "documents": documents,
            "chat_variables": variables,
            "continue_final_message": continue_final_message,
            "sanitize_control_tokens": sanitize_control_tokens,
        }
        reading = Reading(self, asked(options), opens=bool(add_generation_prompt))
        if sanitize_control_tokens and not tokenize:
            raise bad_option("sanitize_control_tokens", "False with tokenize=False", "True")
        make = reading.ids if tokenize else reading.text
        from .chat_messages import is_batch

        return [make(one) for one in messages] if is_batch(messages) else make(messages)

    def _chat_items(self: Any, messages: list[dict[str, Any]]) -> Any:  # noqa: ANN401 (see `_start`)
        """One conversation as the items of a call."""
        return self._items(messages, None, None)[0] if self.has_encoder else [messages]

    def _prefix_for_chat(self: Any, previous: object) -> dict[str, Any]:
        """How `_start` is called for a turn of a `Chat`, by what the turn before has left; sources are read anew."""
        return {} if self.has_encoder else {"reuse": previous, "keep": True}


class Reading:
    """How the conversations of one call are read.

    Args:
        model: The model.
        options: What the call asks for.
        opens: Whether an answer is opened behind the last message that is not continued.

    Raises:
        ChatTemplateError: There is no template, or none of the name asked for.
        OptionError: An option cannot be used.
        TokenizerMissing: The model has no tokenizer.
    """

    def __init__(self, model: Any, options: Asked, *, opens: bool = True) -> None:  # noqa: ANN401 (a LanguageModel)
        from .chat_templates import choose
        from .chat_tools import schemas

        self._model = model
        self._options = options
        self._opens = opens and not options.continue_final_message
        self._tokenizer: Tokenizer = model._need_tokenizer("a conversation")
        where = str(model._folder) if model._folder is not None else "the model"
        self._chosen: Chosen = choose(
            _templates(model, self._tokenizer),
            options.chat_template,
            with_tools=options.tools is not None,
            where=where,
        )
        tools, documents, variables = options.tools, options.documents, dict(options.variables)
        if taken := RESERVED & variables.keys():
            expected = "names that the call itself does not give"
            raise bad_option("chat_variables", expected, ", ".join(sorted(taken)))
        self._control: tuple[str, ...] = ()
        if options.sanitize:
            from .chat_tokens import control_tokens, marked

            self._control = control_tokens(self._tokenizer, self._literals)
            tools, documents, variables = (
                marked(value, self._control) for value in (tools, documents, variables)
            )
        self._tools, self._documents = schemas(tools), documents
        self._variables = {**self._tokenizer.special_tokens_map, **variables}
        if self._chosen.layout is not None:
            self._refuse_for_layout()

    def _refuse_for_layout(self) -> None:
        given = {
            "tools": self._tools,
            "documents": self._documents,
            "chat_variables": self._options.variables,
        }
        for name, value in given.items():
            if value:
                raise bad_option(
                    name, f"none with {self._chosen.name}, which has no place for any", brief(value)
                )
        if isinstance(self._options.continue_final_message, str) and self._continues != "content":
            expected = f'"content" with {self._chosen.name}'
            raise bad_option("continue_final_message", expected, brief(self._continues))

    @property
    def _continues(self) -> bool | str:
        return self._options.continue_final_message

    def text(self, messages: Any) -> str:  # noqa: ANN401 (checked here)
        """The text of one conversation.

        Raises:
            ChatTemplateError: The template fails.
            OptionError: These are no messages.
        """
        from .chat_messages import conversation

        held = conversation(messages)
        if self._options.sanitize:
            from .chat_tokens import marked

            held = marked(held, self._control)
        text = self._render(held, opens=self._opens, continues=self._continues)
        if self._chosen.layout is None and not self._continues:
            self._warn_of_dropped(held, text)
        return text

    def ids(self, messages: Any) -> list[int]:  # noqa: ANN401 (checked here)
        """Ids of one conversation: a template writes the tokens that begin a text, a layout does not.

        Raises:
            ChatTemplateError: The template fails.
            OptionError: These are no messages.
        """
        text, has_layout = self.text(messages), self._chosen.layout is not None
        if self._options.sanitize:
            from .chat_tokens import encode_marked

            return self._around(encode_marked(self._tokenizer, text), has_layout=has_layout)
        return self._tokenizer.encode(text, add_special_tokens=has_layout)

    def _around(self, ids: list[int], *, has_layout: bool) -> list[int]:
        """Ids with the special tokens that a text has around it, where it is a layout's."""
        if not has_layout:
            return ids
        alone = self._tokenizer.encode("x", add_special_tokens=False)
        whole = self._tokenizer.encode("x")
        at = next((at for at in range(len(whole)) if whole[at : at + len(alone)] == alone), 0)
        return whole[:at] + ids + whole[at + len(alone) :]

    def _render(self, messages: list[dict[str, Any]], *, opens: bool, continues: bool | str = False) -> str:
        if self._chosen.layout is not None:
            return self._chosen.layout.render(
                messages,
                self._tokenizer.eos_token,
                add_generation_prompt=opens,
                continue_final_message=bool(continues),
            )
        from .chat_render import render

        assert self._chosen.template is not None
        return render(
            self._chosen.template,
            messages,
            name=self._chosen.name,
            tools=self._tools,
            documents=self._documents,
            add_generation_prompt=opens,
            continue_final_message=continues,
            variables=self._variables,
        )

    def _literals(self) -> str:
        if self._chosen.layout is not None:
            return "\0".join(self._chosen.layout.tokens)
        from .chat_render import literal_text

        assert self._chosen.template is not None
        return literal_text(self._chosen.template, self._chosen.name)

    def _warn_of_dropped(self, messages: list[dict[str, Any]], text: str) -> None:
        """Warns of a role for which the template writes nothing."""
        kept: set[tuple[str, Any]] = self._model._kept_roles
        doubtful = {}
        for place, message in enumerate(messages):
            role, content = spelt(message.get("role")), message.get("content")
            known = (self._chosen.template or "", role) in kept
            if not known or (isinstance(content, str) and content.strip() not in text):
                doubtful[role] = place
        for role, place in doubtful.items():
            other = _otherwise(messages[place])
            # A message that goes may change what is written of those before it, so its text is changed if it has one.
            changed = [*messages[:place], *([] if other is None else [other]), *messages[place + 1 :]]
            try:
                without = self._render(changed, opens=self._opens)
            except ChatTemplateError:
                without = ""  # the message is looked at
            if without != text:
                kept.add((self._chosen.template or "", role))
                continue
            told = f"{self._chosen.name} writes nothing for a message whose role is {role!r}"
            warnings.warn(told, FastdecodeWarning, stacklevel=6)

    def _probe(self, messages: list[dict[str, Any]], *, bare: bool) -> str:
        """The text of some messages, without what the call gives beside its own where `bare`."""
        from .chat_render import render

        assert self._chosen.template is not None
        return render(
            self._chosen.template,
            messages,
            name=self._chosen.name,
            tools=None if bare else self._tools,
            documents=None if bare else self._documents,
            add_generation_prompt=False,
            continue_final_message=False,
            variables=self._tokenizer.special_tokens_map if bare else self._variables,
        )

    def turn_end(self) -> TurnEnd:
        """What ends the model's turn, beside the end tokens of its folder."""
        from .chat_turns import TurnEnd, of_template, of_texts

        key = self._chosen.template or self._chosen.name
        found: TurnEnd | None = self._model._turn_ends.get(key)
        if found is not None:
            return found
        layout = self._chosen.layout
        if layout is None:
            found = None
            # What a call gives beside the messages changes nothing about it, but a template may need some of that.
            for bare in (True, False):
                with contextlib.suppress(ChatTemplateError):
                    found = of_template(functools.partial(self._probe, bare=bare), self._tokenizer)
                    break
            if found is None:
                return TurnEnd()
        else:
            found = of_texts(layout.stops, self._tokenizer)
            if self._tokenizer.eos_token_id is not None:
                found = found._replace(token_ids=(self._tokenizer.eos_token_id, *found.token_ids))
            if missing := [token for token in layout.tokens if token in found.strings]:
                message = (
                    f"{self._chosen.name} writes {' and '.join(map(repr, missing))}, no token of this model's; it was "
                    "probably not trained on them"
                )
                warnings.warn(message, FastdecodeWarning, stacklevel=6)
        size = self._model._core.vocab_size
        found = found._replace(token_ids=tuple(index for index in found.token_ids if index < size))
        self._model._turn_ends[key] = found
        return found

    def with_turn_end(self, options: Options, given: Mapping[str, Any]) -> Options:
        """The options of a call, with which the model's turn ends.

        Args:
            options: The call's, resolved.
            given: The same as given by the caller: None for `stop` or `stop_token_ids` switches off what a turn
                ends with.
        """
        import dataclasses

        ends = self.turn_end()
        ids = ends.token_ids if given.get("stop_token_ids", ()) is not None else ()
        strings = ends.strings if given.get("stop", ()) is not None else ()
        if strings and options.num_beams > 1:
            told = ", ".join(map(repr, strings))
            message = f"the turn ends with {told}, which a search with beams does not look for"
            warnings.warn(message, FastdecodeWarning, stacklevel=5)
            strings = ()
        stops = options.stop_strings if strings and not options.stop else options.stop
        return dataclasses.replace(
            options,
            stop_token_ids=tuple(dict.fromkeys((*options.stop_token_ids, *ids))),
            stop=tuple(dict.fromkeys((*stops, *strings))),
            stop_strings=() if strings else options.stop_strings,
            unshown=frozenset((*options.eos_token_id, *ids)),
        )


def _otherwise(message: dict[str, Any]) -> dict[str, Any] | None:
    """The message with another text, or None where it has none."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": f"{content} {_MARK}"}
    if isinstance(content, (list, tuple)) and any(
        isinstance(part, dict) and "text" in part for part in content
    ):
        return {**message, "content": [*content, {"type": "text", "text": _MARK}]}
    return None


def _templates(model: Any, tokenizer: Tokenizer) -> Templates:  # noqa: ANN401 (a LanguageModel)
    """The templates that belong to a model's tokenizer."""
    from .chat_templates import checked, read_templates

    given = getattr(tokenizer._backend, "_given", None)
    if given is not None:
        return checked(getattr(given, "chat_template", None), "the tokenizer")
    # A tokenizer without a folder has no place for templates, so that those of the model count.
    folder = tokenizer.folder if tokenizer.folder is not None else model._folder
    if folder is None:
        return None
    if folder not in model._templates:
        model._templates[folder] = read_templates(folder)
    found: Templates = model._templates[folder]
    return found


def first_is_conversation(items: Any) -> bool:  # noqa: ANN401 (prompts of a call)
    """Whether the prompts of a call are conversations, by the first of them."""
    return isinstance(items, (list, tuple)) and len(items) > 0 and is_conversation(items[0])
