"""Parts of speech, from whoever knows them: spaCy, NLTK, or a file of captions that were tagged elsewhere.

A tagger is a function: texts -> for each, its tokens in order with their tags (universal or Penn's).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from sparc_ref.data.formats.annotations import read_tags

Tagger = Callable[[Sequence[str]], list[list[tuple[str, str]]]]
SPACY = "pip install spacy && python -m spacy download en_core_web_sm"
NLTK = "pip install nltk && python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng"


def open_tagger(name: str) -> Tagger:
    """"spacy", "nltk" or the path of a .jsonl.      ValueError with the one command that is missing"""
    return {"spacy": spacy, "nltk": nltk}[name]() if name in ("spacy", "nltk") else of_file(Path(name))


def spacy() -> Tagger:
    """spaCy's en_core_web_sm, universal tags."""
    try:
        import spacy

        model = spacy.load("en_core_web_sm", exclude=["parser", "ner", "lemmatizer"])     # what gives no tags
    except (ImportError, OSError) as error:
        raise ValueError(f"tagger: expected spaCy with en_core_web_sm ({error}); get it with: {SPACY}") from error
    return lambda texts: [[(token.text, token.pos_) for token in text] for text in model.pipe(texts)]


def nltk() -> Tagger:
    """NLTK's averaged perceptron, Penn's tags."""
    try:
        import nltk

        nltk.pos_tag(nltk.word_tokenize("a cat"))                 # its models are looked for when they are asked
    except (ImportError, LookupError) as error:
        reason = " ".join(str(error).replace("*", "").split())[:60]
        raise ValueError(f"tagger: expected NLTK with its tokenizer and tagger ({reason}); get them with: {NLTK}") from error
    return lambda texts: [nltk.pos_tag(nltk.word_tokenize(text)) for text in texts]


def of_file(path: Path) -> Tagger:
    """{"caption": "A red cat.", "tags": [["A", "DET"], ["red", "ADJ"], ["cat", "NOUN"], [".", "PUNCT"]]}, one a line."""
    known = read_tags(path)

    def tags(texts):
        missing = [text for text in texts if text not in known]
        if missing:
            raise ValueError(f"{path}: expected the tags of every caption, found none for {len(missing)} of {len(texts)}, the "
                             f"first {missing[0]!r}; add a line for each")
        return [known[text] for text in texts]

    return tags
