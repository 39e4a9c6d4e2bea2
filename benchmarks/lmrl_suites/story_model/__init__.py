"""The embedded story model: its tokenizer, its training and the measures of what it has learned."""
