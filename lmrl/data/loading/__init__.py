"""Loading rows: files, folders, compressed streams, tables and data sets."""
