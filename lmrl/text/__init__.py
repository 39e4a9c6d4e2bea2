"""Text and token ids without torch: model cards, codecs, chat templates, checkpoint folders."""
