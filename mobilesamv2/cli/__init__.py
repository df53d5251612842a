"""The command line ``mobilesamv2``: one module per subcommand, with its arguments beside its code."""
