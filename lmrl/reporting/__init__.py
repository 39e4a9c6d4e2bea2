"""Reports: pages of tables and images, curves of a run."""
