"""Text corpora: reading, cleaning, tokenising, packing, and drawing blocks of tokens for pretraining."""

from lmrl.data.text.batches import TokenDataset, TokenRows
from lmrl.data.text.cleaning import Cleaner
from lmrl.data.text.documents import Document
from lmrl.data.text.prepare import PreparedCorpus, open_corpus, prepare_corpus
from lmrl.data.text.report import CorpusReport
from lmrl.data.text.settings import CleanSettings, CorpusSettings, QualityRules, TokenizerSettings
from lmrl.data.text.sources import find_sources, read_documents
from lmrl.data.text.tokenizer import DocumentEncoder, bring_tokenizer, train_tokenizer
from lmrl.data.text.tokens import TokenFiles, TokenStream, TokenWriter

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
