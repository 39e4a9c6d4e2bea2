"""What ``benchmarks/throughput.py`` measures: one module per workload, and how runs are timed and recorded."""
