"""A byte-level BPE tokenizer for code and prose, trained on the text of the model."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"

# One piece each: line breaks with the indentation that follows, less the one space that stays with the word,
# so that ` return` is the same token in every column; then words, numbers, punctuation, spaces.
SPLIT = (
    r"(?:[ \t\r]*\n)+(?: +(?= \S))?"
    r"| ?\p{L}+"
    r"| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


def train(texts: Iterable[str], *, vocab_size: int, context_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``vocab_size`` tokens whose token 0, ``<|endoftext|>``, separates documents.

    It is begin, end and padding at once. Encoding adds nothing and decoding restores the text exactly.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
