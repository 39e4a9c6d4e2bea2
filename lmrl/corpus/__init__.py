"""Text corpora: reading, cleaning, tokenising, packing, and drawing blocks of tokens for pretraining."""

from lmrl.corpus.batches import TokenDataset, TokenRows
from lmrl.corpus.cleaning import Cleaner
from lmrl.corpus.documents import Document
from lmrl.corpus.prepare import PreparedCorpus, open_corpus, prepare_corpus
from lmrl.corpus.report import CorpusReport
from lmrl.corpus.settings import CleanSettings, CorpusSettings, QualityRules, TokenizerSettings
from lmrl.corpus.sources import find_sources, read_documents
from lmrl.corpus.tokenizer import DocumentEncoder, bring_tokenizer, train_tokenizer
from lmrl.corpus.tokens import TokenFiles, TokenStream, TokenWriter

__all__ = [
    "CleanSettings",
    "Cleaner",
    "CorpusReport",
    "CorpusSettings",
    "Document",
    "DocumentEncoder",
    "PreparedCorpus",
    "QualityRules",
    "TokenDataset",
    "TokenFiles",
    "TokenRows",
    "TokenStream",
    "TokenWriter",
    "TokenizerSettings",
    "bring_tokenizer",
    "find_sources",
    "open_corpus",
    "prepare_corpus",
    "read_documents",
    "train_tokenizer",
]
