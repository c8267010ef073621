# %% [markdown]
# # How language models write, step by step
#
# One lesson on two kinds of model: one that goes on from a text (GPT-2 and Phi), and one that reads a source with an
# encoder and writes with a decoder (T5). Every section is short, runs on a laptop's CPU, and shows with an `assert`
# what it claims.
#
# It runs offline on the small models that come with fastdecode. Point it at real ones by changing the names below:
# `gpt2`, `t5-base`, `flan-t5-large` and `phi-1_5` (as folders or hub ids). This notebook is made from `lesson.py` by
# `tools/make_notebook.py`.

# %%
import os
from collections.abc import Iterator

import fastdecode
import numpy as np

CAUSAL = os.environ.get("LESSON_CAUSAL", "demo-stories")  # or "gpt2"
TRANSLATOR = os.environ.get("LESSON_TRANSLATOR", "demo-en-fr")  # or "google-t5/t5-base"
INSTRUCT = os.environ.get("LESSON_INSTRUCT", "demo-en-fr")  # or "google/flan-t5-large"
PHI = os.environ.get("LESSON_PHI", "demo-stories")  # or "microsoft/phi-1_5"

storyteller = fastdecode.load(CAUSAL)
translator = fastdecode.load(TRANSLATOR)
instruct = translator if INSTRUCT == TRANSLATOR else fastdecode.load(INSTRUCT)
phi = storyteller if PHI == CAUSAL else fastdecode.load(PHI)
print(storyteller, translator, instruct, phi, sep="\n")

# %% [markdown]
# ## 1. Five ways to go on
#
# A model gives a probability to every token that could come next. Drawing from them gives another text every time;
# a seed makes the draws repeatable. The prompt is read once, and the five sequences share it.

# %%
prompt = "Once upon a time there was a king who"
options = {"do_sample": True, "temperature": 0.8, "top_k": 50, "seed": 7, "max_new_tokens": 24}
five = storyteller.generate(prompt, num_return_sequences=5, **options)
for number, story in enumerate(five, 1):
    print(f"{number}. {prompt}{story!r}")
assert five == storyteller.generate(prompt, num_return_sequences=5, **options)

# %% [markdown]
# Looking for the most probable text instead: one token at a time (greedy), or with several hypotheses side by side
# (beam search). The score of a beam is the mean log-probability of its new tokens.

# %%
greedy = storyteller.run(prompt, do_sample=False, max_new_tokens=16, eos_token_id=None, logprobs=0)
beam = storyteller.run(prompt, do_sample=False, num_beams=4, max_new_tokens=16, eos_token_id=None)
mean = np.mean([token.logprob for token in greedy.logprobs])
print(f"greedy {mean:.3f}: {greedy}\nbeams  {beam.score:.3f}: {beam}")

# %% [markdown]
# ## 2. Preprocess, forward, postprocess
#
# What happens in between: text becomes token ids, ids become logits (one row per token, one column per entry of the
# vocabulary), and logits become text again.

# %%
ids = storyteller.tokenizer.encode(prompt)  # preprocess
print(ids, [storyteller.tokenizer.decode([token]) for token in ids])

logits = storyteller.logits(ids)  # forward: all rows in one pass
print("logits:", logits.shape, logits.dtype)

best = np.argsort(-logits[-1])[:5]  # postprocess: what may follow the last token
probabilities = np.exp(logits[-1] - logits[-1].max())
probabilities /= probabilities.sum()
for token in best:
    print(f"{probabilities[token]:6.1%}  {storyteller.tokenizer.decode([int(token)])!r}")

# %% [markdown]
# ## 3. Prefill and decode by hand
#
# The prompt is read in one pass (prefill), which leaves keys and values of every token in a cache. From then on
# each step reads a single token (decode). Both together are `generate`.

# %%
state = storyteller.prefill(prompt)
assert np.array_equal(
    state.logits, logits[-1]
)  # the cached way gives the same bits as one pass over everything
for _ in range(16):
    state.step(int(state.logits.argmax()))
new = state.tokens[len(ids) :]
print(storyteller.tokenizer.decode(new))
assert new == greedy.token_ids

# %% [markdown]
# A state can be forked: both go on from one cache, which is copied only where they differ.

# %%
fork = storyteller.prefill(prompt).fork()
second = int(fork.logits.argsort()[-2])
fork.step(second)
for _ in range(8):
    fork.step(int(fork.logits.argmax()))
print(storyteller.tokenizer.decode(fork.tokens[len(ids) :]))
assert fork.tokens[len(ids)] != state.tokens[len(ids)]

# %% [markdown]
# ## 4. Translation
#
# An encoder-decoder reads the whole source first. What the task is stands in the source itself: a prefix. The
# pipeline puts it there, as the model's config.json says.

# %%
prefix = "translate English to French: "
sentences = ["I am happy to see you.", "Where is the station?", "She has two brothers."]
for sentence, translation in zip(
    sentences,
    translator.generate([prefix + sentence for sentence in sentences], max_new_tokens=32),
    strict=True,
):
    print(f"{sentence}  ->  {translation}")

translate = fastdecode.pipeline("translation_en_to_fr", model=translator, num_beams=4, max_new_tokens=32)
print(translate(sentences))

# %% [markdown]
# ## 5. A generator of tokens
#
# The decoder writes one token after the other, each from the encoder's output and from what it has written so far.
# This is all of it: encode the source once, begin with the start token (and whatever the output shall begin with),
# take the best token, until the model says that it is done.

# %%
EOS = translator.tokenizer.eos_token_id


def generate_tokens(encoder_input: str, decoder_input: str = "", limit: int = 32) -> Iterator[int]:
    """Yields the ids of an output, best token by best token, the end token excluded."""
    memory = translator.encode(encoder_input)  # the encoder runs once
    begin = translator.tokenizer.encode(decoder_input, add_special_tokens=False)
    start = translator.config.get("decoder_start_token_id", 0)
    state = translator.prefill([start, *begin], memory=memory)
    for _ in range(limit):
        token = int(state.logits.argmax())
        if token == EOS:
            return
        yield token
        state.step(token)


written = []
for token in generate_tokens(prefix + sentences[0]):
    written.append(token)
    print(translator.tokenizer.decode(written))
output = translator.run(prefix + sentences[0], max_new_tokens=32, num_beams=1, do_sample=False)
assert written == [token for token in output.token_ids if token != EOS]

# %% [markdown]
# The same with an output that is begun for the model, and as text that streams:

# %%
begun = "Je suis"
print(begun, translator.tokenizer.decode(generate_tokens(prefix + sentences[0], begun)))
for piece in translator.stream(prefix + sentences[0], begun, max_new_tokens=32, num_beams=1):
    print(piece, end="", flush=True)
print()

# %% [markdown]
# ## 6. An instruct model, with and without an example
#
# A model that was trained on instructions (Flan-T5) follows a request; one solved example in the prompt often
# helps. (The bundled model only translates, so its answers here are beside the point: try
# `LESSON_INSTRUCT=google/flan-t5-large`.)

# %%
EXAMPLE = "Question: Which is heavier, a stone or a feather? Answer: a stone\n"
PROMPTS = [
    "Question: What is the capital of France? Answer:",
    "Question: How many legs has a spider? Answer:",
    "Question: Which is larger, a mouse or an elephant? Answer:",
    "Question: What do bees make? Answer:",
    "Question: Which colour do blue and yellow give? Answer:",
    "Question: Is the sun a star or a planet? Answer:",
    "Question: What is the opposite of cold? Answer:",
]
alone = instruct.generate(PROMPTS, max_new_tokens=12)
shown = instruct.generate([EXAMPLE + question for question in PROMPTS], max_new_tokens=12)
for question, without, after in zip(PROMPTS, alone, shown, strict=True):
    print(f"{question}\n  without: {without!r}\n  after an example: {after!r}")

# %% [markdown]
# ## 7. The loss of a target, in one pass
#
# When the output is known, nothing needs to be generated: the decoder reads the target shifted by one place and
# predicts every token of it at once. The mean of the negative log-probabilities is the loss that training lowers.

# %%
source, target = prefix + sentences[0], "Je suis heureux de vous voir."
print("loss:", translator.loss(source, target))

target_ids = translator.tokenizer.encode(target)
start = translator.config.get("decoder_start_token_id", 0)
rows = translator.logits(source, [start, *target_ids[:-1]]).astype(np.float64)
logprobs = rows - rows.max(-1, keepdims=True)
logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
by_hand = -logprobs[np.arange(len(target_ids)), target_ids].mean()
assert abs(by_hand - translator.loss(source, target)) < 1e-5

# %% [markdown]
# A wrong target costs more than a right one, at least with a model that has learned to translate:

# %%
candidates = [target, "Où est la gare ?", "Elle a deux frères."]
for candidate, loss in zip(candidates, translator.loss([source] * 3, candidates), strict=True):
    print(f"{loss:7.3f}  {candidate}")

# %% [markdown]
# ## 8. The same questions, without an encoder
#
# Phi is a decoder alone, as GPT-2 is: it goes on from a text, and was not trained to take requests. It answers a
# question that looks like the beginning of a text whose next words are the answer, and the prompts above do look so.
# But nothing tells such a model that one answer is enough: it would go on with the next question. `stop="\n"` ends
# the text in front of the first line break. (The bundled model only tells stories, so its answers are beside the
# point again: try `LESSON_PHI=microsoft/phi-1_5`.)

# %%
short = {"do_sample": False, "max_new_tokens": 12, "stop": "\n"}
for question, answer in zip(PROMPTS, phi.generate(PROMPTS, **short), strict=True):
    print(question, answer)
    assert "\n" not in answer

# %% [markdown]
# Solved examples in front of the question matter more here than in section 6, since they are the only place where the
# model can see what is wanted: short answers, one to a line, and then a line break. One example shows the form, and
# a few of them show it better; this is called few-shot prompting. No weight changes, and there is nothing but a longer
# prompt.

# %%
EXAMPLES = [
    EXAMPLE,
    "Question: How many wheels has a bicycle? Answer: two\n",
    "Question: Is ice warm or cold? Answer: cold\n",
]
shots = {count: "".join(EXAMPLES[:count]) for count in (0, 1, len(EXAMPLES))}
answers = {
    count: phi.generate([examples + question for question in PROMPTS], **short)
    for count, examples in shots.items()
}
for number, question in enumerate(PROMPTS):
    print(question)
    for count, given in answers.items():
        print(f"  after {count} examples: {given[number]!r}")

# %% [markdown]
# ## 9. A generator of tokens, without an encoder
#
# Section 5 wrote with an encoder and a decoder, and had a text for each. Here is its counterpart with the same two
# arguments. The loop is the same: look at the logits, take the best token, hand it out, and make a step with it. What
# differs is where the two texts go, and who says that the end has come:
#
# - T5's encoder reads `encoder_input` once, and every step looks at the memory that it makes. Phi reads it as the
#   beginning of the one sequence that there is.
# - With T5, `decoder_input` follows the start token, in a sequence of its own. With Phi, it follows `encoder_input` in
#   the same sequence.
# - A step of T5 looks at the cache of what was written, and at the memory. A step of Phi looks at one cache, which
#   holds the question and the answer.
# - T5 writes its end token. Phi writes what we agreed on with it, a line break, or its end token.

# %%
END = phi.tokenizer.eos_token_id  # None in a model without one: then no token equals it


def answer_tokens(
    encoder_input: str, decoder_input: str = "", limit: int = 12, stop: str = "\n"
) -> Iterator[int]:
    """Yields the ids of an answer, best token by best token, up to the one that brings the stop string or the end."""
    state = phi.prefill(encoder_input + decoder_input)  # one text, read in one pass
    new: list[int] = []
    for _ in range(limit):
        token = int(state.logits.argmax())
        new.append(token)
        yield token
        if token == END or stop in phi.tokenizer.decode(new):
            return
        state.step(token)


question = shots[len(EXAMPLES)] + PROMPTS[0]
answered = []
for token in answer_tokens(question):
    answered.append(token)
    print(repr(phi.tokenizer.decode(answered)))
output = phi.run(question, eos_token_id=END, **short)
assert answered == output.token_ids  # the ids hold the stop string, and the text ends before it
assert phi.tokenizer.decode(answered).split("\n")[0] == output.text

# %% [markdown]
# The same with an answer that is begun for the model, and as text that streams:

# %%
begun = " The capital"
print(begun, repr(phi.tokenizer.decode(answer_tokens(question, begun))))
for piece in phi.stream(question + begun, eos_token_id=END, **short):
    print(piece, end="", flush=True)
print()

# %% [markdown]
# Several answers to one question: a memory of T5's serves as many outputs as one likes. Without an encoder it is the
# state that serves: the question is read once, and each answer goes on from a fork of it. What was read in pieces is
# the same, to the bit, as what is read in one pass.

# %%
asked = phi.prefill(question)
for begun in (" The", " It", " A"):
    state = asked.fork()
    for token in phi.tokenizer.encode(begun, add_special_tokens=False):
        state.step(token)
    assert np.array_equal(state.logits, phi.prefill(state.tokens).logits)
    for _ in range(6):
        state.step(int(state.logits.argmax()))
    print(repr(phi.tokenizer.decode(state.tokens[len(asked) :])))
