"""Fine-tune a model on examples."""
