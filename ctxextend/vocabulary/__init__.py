"""Tokenizers between the two worlds: the files of a Hugging Face checkpoint, and the keys of a GGUF file."""

from ctxextend.vocabulary.files import tokenizer_files
from ctxextend.vocabulary.keys import vocabulary_keys

__all__ = ["tokenizer_files", "vocabulary_keys"]
