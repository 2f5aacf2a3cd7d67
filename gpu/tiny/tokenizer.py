"""Trains the byte-level BPE of the tiny model on the generator's text and writes the tokenizer's files.

Words are split as by Qwen2 (single digits, a word with its leading space), so any loader of such tokenizers reads it.

    python tokenizer.py
"""

import json
import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data import ANY_WORD, END_OF_TEXT, MODEL, SPECIALS, TURN_END, document

VOCABULARY_SIZE = 2048
DOCUMENTS = 4000
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
TEMPLATE = ("{% for message in messages %}"
            "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


class NoVocabulary:
    """Stands in before there is a vocabulary: each piece is one token."""
    size = 256 + len(SPECIALS)

    def __getitem__(self, piece):
        return [0]


def corpus():
    """Generated documents, then all words alone and after a space."""
    for seed in range(DOCUMENTS):
        text = "".join(document(NoVocabulary(), f"tokenizer {seed}", 400).text)
        for special in SPECIALS:
            text = text.replace(special, "\n")
        yield text
    for _ in range(20):
        yield " ".join(ANY_WORD)
        yield "\n".join(ANY_WORD)


def main():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(corpus(), trainer)
    assert tokenizer.get_vocab_size() <= VOCABULARY_SIZE
    tokenizer.save(str(MODEL / "tokenizer.json"))

    names = {"eos_token": TURN_END, "pad_token": END_OF_TEXT}
    write("special_tokens_map.json", names)
    write("tokenizer_config.json", {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                     "special": True} for i, token in enumerate(SPECIALS)},
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        **names,
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    })
    whole = sum(len(tokenizer.encode(" " + word).ids) == 1 for word in ANY_WORD)
    print(f"{tokenizer.get_vocab_size()} tokens, {whole} of {len(ANY_WORD)} words are one token after a space")


def write(name, value):
    (MODEL / name).write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
