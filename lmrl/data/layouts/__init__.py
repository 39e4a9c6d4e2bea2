"""Layouts of rows: from named columns to prompts, answers and rankings."""
