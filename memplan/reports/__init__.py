"""What a record looks like: on a terminal, and as JSON. Nothing here prints, and nothing here needs torch."""
