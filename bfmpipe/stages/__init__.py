"""The stages, one a Snakemake rule: read files, call the library, write files."""
