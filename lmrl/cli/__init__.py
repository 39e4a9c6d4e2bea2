"""The command line: one module per subcommand; ``lmrl.cli.main`` finds and runs them."""
